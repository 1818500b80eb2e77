//! Who holds connections open, and who is let in all the same.

use super::*;

#[tokio::test]
async fn connections_that_ask_for_nothing_keep_nobody_out() {
    let most = 4;
    let bounds = Bounds {
        connections: most,
        ..Bounds::default()
    };
    let served = serve(None, bounds);
    let mut idle = Vec::new();
    for _ in 0..most {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    // One that was answered stays before those that never asked go.
    let mut asked = idle.pop().unwrap();
    let get = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    asked.write_all(get).await.unwrap();
    let mut begin = [0; 12];
    asked.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    for _ in 0..most - 1 {
        assert_eq!(served.get_status().await, 200);
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    assert_eq!(rest(&mut idle[0]).await, "", "the oldest had to go");
    let again = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    asked.write_all(again).await.unwrap();
    assert!(rest(&mut asked).await.contains("HTTP/1.1 200"));
}

//! The operator: HTTP by hand, so that what is tested does not test itself.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::until;

/// For one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Speaks to one admin address.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    pub(crate) token: Option<String>,
}

impl Admin {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            token: None,
        }
    }

    /// Status and body.
    pub(crate) async fn try_request(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> io::Result<(u16, String)> {
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await?;
            let body = body.unwrap_or_default();
            let token = self
                .token
                .as_ref()
                .map_or_else(String::new, |t| format!("authorization: Bearer {t}\r\n"));
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{token}\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                self.address,
                body.len()
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = tokio::time::timeout(ANSWER, asked).await??;
        let parsed = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
            let status = head.split(' ').nth(1)?.parse().ok()?;
            Some((status, body.to_owned()))
        });
        parsed.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, answer))
    }

    /// A JSON answer that must be there.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.try_request("GET", path, None).await.unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.try_request("POST", path, Some(body)).await.unwrap()
    }

    /// A change that must succeed.
    pub(crate) async fn change(&self, path: &str, body: &str) {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
    }

    pub(crate) async fn scrape(&self) -> Scrape {
        let (status, body) = self.try_request("GET", "/metrics", None).await.unwrap();
        assert_eq!(status, 200);
        Scrape(body)
    }

    /// One backend's entry of the list; null if there is none.
    pub(crate) async fn backend(&self, name: &str) -> Value {
        let list = self.get("/api/v1/backends").await;
        let items = list["items"].as_array().unwrap();
        let found = items.iter().find(|item| item["name"] == name);
        found.cloned().unwrap_or_default()
    }

    /// Waits until a backend is observed in one of these states.
    pub(crate) async fn health(&self, name: &str, wanted: &[&str]) {
        until(&format!("{name} {wanted:?}"), async || {
            let backend = self.backend(name).await;
            let health = backend["health"].as_str().unwrap_or("gone").to_owned();
            if wanted.contains(&health.as_str()) {
                Ok(())
            } else {
                Err(backend)
            }
        })
        .await;
    }

    /// Waits until a series has this value.
    pub(crate) async fn metric_is(&self, series: &str, wanted: f64) {
        until(&format!("{series} {wanted}"), async || {
            let seen = self.scrape().await.value(series);
            if (seen - wanted).abs() < 1e-9 {
                Ok(())
            } else {
                Err(seen)
            }
        })
        .await;
    }

    /// Waits until all series of a family add up to this.
    pub(crate) async fn metric_is_of(&self, family: &str, wanted: f64) {
        until(&format!("{family} {wanted}"), async || {
            let seen = self.scrape().await.sum(family);
            if (seen - wanted).abs() < 1e-9 {
                Ok(())
            } else {
                Err(seen)
            }
        })
        .await;
    }
}

/// What `/metrics` said.
pub(crate) struct Scrape(pub(crate) String);

impl Scrape {
    /// The value of one series, labels in the order of the text; 0 for one that is not there.
    pub(crate) fn value(&self, series: &str) -> f64 {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or(0.0)
    }

    /// The sum over all series of a family.
    pub(crate) fn sum(&self, family: &str) -> f64 {
        self.0
            .lines()
            .filter(|line| {
                line.strip_prefix(family)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }
}

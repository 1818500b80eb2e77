//! The words of an error for the log: what the client wrote is not in them.

use super::ProxyError;

impl ProxyError {
    /// What it says, without what it repeats of a message that could not be read: a prompt or a
    /// token may stand there. The client is told the whole.
    pub fn logged(&self) -> String {
        if let Self::Parse(words) | Self::InvalidRequest(words) | Self::InvalidParams(words) = self
        {
            without_excerpt(words)
        } else {
            self.to_string()
        }
    }
}

/// The text up to the first thing that it quotes, and from behind the last.
fn without_excerpt(words: &str) -> String {
    // The members that are missed are those of the protocol.
    if words.starts_with("missing field") {
        return words.to_owned();
    }
    if let Some((before, _)) = words.split_once(". Got ") {
        return before.to_owned();
    }
    let quoted = |sign: char| Some((words.find(sign)?, words.rfind(sign)?));
    let (start, end) = match (quoted('"'), quoted('`')) {
        (Some((a, b)), Some((c, d))) => (a.min(c), b.max(d)),
        (Some(found), None) | (None, Some(found)) => found,
        (None, None) => return words.to_owned(),
    };
    format!("{}…{}", &words[..start], &words[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        frame::{Cutter, FrameLimits},
        scan::scan,
    };

    const SECRET: &str = "se\"cr`et";

    #[test]
    fn nothing_of_a_message_is_repeated() {
        let quoted = serde_json::Value::from(SECRET).to_string();
        let bodies = [
            format!(r#"{{"jsonrpc":{quoted},"id":1,"method":"m"}}"#),
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":[{quoted}]}}"#),
            format!(r#"{{"jsonrpc":"2.0","id":1,"error":{quoted}}}"#),
            format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{quoted},"message":""}}}}"#),
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{quoted}"#),
            format!("[{quoted}]"),
            quoted,
        ];
        let mut repeated = 0;
        for body in bodies {
            let reject = scan(body.as_bytes()).expect_err("it is wrong").message();
            repeated += usize::from(reject.contains("cr`et"));
            for error in [
                ProxyError::Parse(reject.clone()),
                ProxyError::InvalidRequest(reject.clone()),
                ProxyError::InvalidParams(format!("Invalid connect request: {reject}")),
            ] {
                let logged = error.logged();
                assert!(!logged.contains("cr`et"), "{reject}: {logged}");
                assert!(logged.len() > 10, "{reject}: {logged}");
            }
        }
        assert!(repeated >= 2, "the client is told");

        let header = format!("Content-Length: {SECRET}\r\n\r\n");
        let limits = FrameLimits {
            header: 100,
            frame: 100,
        };
        let error = Cutter::new(limits).cut(header.as_bytes());
        let error = error.expect_err("no number").to_string();
        assert!(error.contains(SECRET), "{error}");
        let logged = ProxyError::Parse(error).logged();
        assert_eq!(logged, "Content-Length value must be a number");
    }

    #[test]
    fn what_helps_is_kept() {
        for words in [
            "missing field `jsonrpc`",
            "trailing comma at line 1 column 3",
            "not a recognizable JSON-RPC request, notification, or response",
        ] {
            assert_eq!(ProxyError::Parse(words.to_owned()).logged(), words);
        }
        let twice = ProxyError::duplicate_id(b"\"a\"").logged();
        assert!(
            twice.starts_with("Request id ") && twice.contains("still in use"),
            "{twice}"
        );
        let other = ProxyError::Draining;
        assert_eq!(other.logged(), other.to_string());
    }
}

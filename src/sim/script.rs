//! What a prompt asks the simulated model to do.
//!
//! Directives may stand anywhere in a prompt: `[[len 200]]` deltas, `[[slow 20]]` milliseconds
//! between them, `[[pad 300]]` bytes each, `[[tool NAME {json}]]` (one model round each, in order),
//! `[[ask Question?]]`, `[[fail]]` (the model cannot be reached). Without one the reply is a short
//! echo. This file must not talk to anybody.

/// Limits, so that no prompt can make the simulated server run out of memory.
const DELTAS_MAX: usize = 1_000_000;
const PAD_MAX: usize = 65_536;
const REPLY_MAX: usize = 64 << 20;
const SLOW_MAX_MS: u64 = 60_000;

/// How the final message of a turn is streamed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// `[[len N]]`: the words `w0 `, `w1 ` …, each filled up to `pad` bytes.
    Words { count: usize, pad: usize },
    /// The prompt's own words.
    Echo(Vec<String>),
    /// `[[fail]]`: `session.error` instead of a message.
    Failure,
}

/// One tool call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ToolCall {
    /// Name as the client registered it, or `ask_user`.
    pub(super) name: String,
    /// Arguments: JSON, in the prompt's own key order.
    pub(super) arguments: String,
}

/// A prompt, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Script {
    pub(super) tools: Vec<ToolCall>,
    pub(super) reply: Reply,
    /// Pause between deltas.
    pub(super) slow_ms: u64,
}

impl Script {
    /// Reads the directives of `prompt`; anything else is text.
    pub(super) fn read(prompt: &str) -> Self {
        let mut tools = Vec::new();
        let mut slow_ms = 0;
        let mut count = None;
        let mut pad = 0;
        let mut fails = false;
        let mut text = String::new();
        let mut rest = prompt;
        while let Some(start) = rest.find("[[") {
            let (before, inside) = (&rest[..start], &rest[start + 2..]);
            let Some(end) = inside.find("]]") else { break };
            text.push_str(before);
            let directive = &inside[..end];
            rest = &inside[end + 2..];
            let (word, argument) = directive.split_once(' ').unwrap_or((directive, ""));
            match word {
                "len" => count = argument.parse::<usize>().ok(),
                "pad" => pad = argument.parse::<usize>().unwrap_or(0).min(PAD_MAX),
                "slow" => slow_ms = argument.parse::<u64>().unwrap_or(0).min(SLOW_MAX_MS),
                "fail" => fails = true,
                "ask" => tools.push(ToolCall {
                    name: "ask_user".to_owned(),
                    arguments: format!(r#"{{"question":{}}}"#, super::event::quoted(argument)),
                }),
                "tool" => tools.extend(tool(argument)),
                _ => text.push_str(directive),
            }
        }
        text.push_str(rest);
        let reply = if fails {
            Reply::Failure
        } else if let Some(count) = count {
            let most = REPLY_MAX / pad.max(8);
            Reply::Words {
                count: count.min(DELTAS_MAX).min(most),
                pad,
            }
        } else {
            echo(&text)
        };
        Self {
            tools,
            reply,
            slow_ms,
        }
    }
}

fn echo(text: &str) -> Reply {
    let words = text
        .split_whitespace()
        .take(32)
        .map(|word| format!("{word} "));
    Reply::Echo(
        std::iter::once("You said: ".to_owned())
            .chain(words)
            .collect(),
    )
}

fn tool(argument: &str) -> Option<ToolCall> {
    let (name, arguments) = argument.split_once(' ').unwrap_or((argument, "{}"));
    serde_json::from_str::<serde_json::Value>(arguments).ok()?;
    Some(ToolCall {
        name: name.to_owned(),
        arguments: arguments.to_owned(),
    })
}

/// The content of delta `number` of `[[len N]] [[pad pad]]`, ending with a blank.
pub(super) fn word_into(out: &mut Vec<u8>, number: usize, pad: usize) {
    let start = out.len();
    out.push(b'w');
    out.extend_from_slice(number.to_string().as_bytes());
    while out.len() - start + 1 < pad {
        out.push(b'x');
    }
    out.push(b' ');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_in_any_place() {
        let script = Script::read("hi [[len 3]] a [[slow 20]] [[pad 300]] b");
        assert_eq!(script.reply, Reply::Words { count: 3, pad: 300 });
        assert_eq!(script.slow_ms, 20);
        assert!(script.tools.is_empty());
    }

    #[test]
    fn tools_keep_their_order_and_arguments() {
        let script = Script::read(r#"x [[tool b {"z":1,"a":[2]}]] [[ask Why "so"?]] [[tool a]]"#);
        let tools: Vec<_> = script
            .tools
            .iter()
            .map(|t| (t.name.as_str(), t.arguments.as_str()))
            .collect();
        let expected = [
            ("b", r#"{"z":1,"a":[2]}"#),
            ("ask_user", r#"{"question":"Why \"so\"?"}"#),
            ("a", "{}"),
        ];
        assert_eq!(tools, expected);
    }

    #[test]
    fn plain_text_is_echoed() {
        let Reply::Echo(words) = Script::read("hello there").reply else {
            panic!("an echo")
        };
        assert_eq!(words.concat(), "You said: hello there ");
    }

    #[test]
    fn no_prompt_asks_for_more_than_the_limits() {
        let Reply::Words { count, pad } = Script::read("[[len 999999999]] [[pad 999999]]").reply
        else {
            panic!("words");
        };
        assert!(count * pad <= REPLY_MAX);
    }

    #[test]
    fn words_are_filled_up() {
        let mut out = Vec::new();
        word_into(&mut out, 12, 8);
        assert_eq!(out, b"w12xxxx ");
        out.clear();
        word_into(&mut out, 12, 0);
        assert_eq!(out, b"w12 ");
    }
}

//! Heads of bodies as the CLI reads them.

use super::*;

const NOT: &str = "not a recognizable JSON-RPC request, notification, or response";

fn refusal(body: &[u8]) -> (i32, String) {
    let reject = scan(body).expect_err(&String::from_utf8_lossy(body));
    (reject.code, reject.message())
}

fn head(body: &str) -> Head {
    scan(body.as_bytes()).unwrap_or_else(|reject| panic!("{body}: {}", reject.message()))
}

fn text<'a>(body: &'a str, text: Option<Text>) -> Option<Cow<'a, str>> {
    text.map(|text| text.get(body.as_bytes()))
}

/// Each row was put to CLI 1.0.102: answered (request), silent (notification, response), or
/// refused with the text given.
#[test]
fn kinds_are_told_apart_as_the_cli_does() {
    use Kind::{Error, Notification, Request, Result};
    let rows: &[(&str, std::result::Result<Kind, &str>)] = &[
        (r#""id":7,"method":"ping""#, Ok(Request)),
        (r#""id":7,"method":"""#, Ok(Request)),
        (r#""id":7,"meth\u006fd":"ping""#, Ok(Request)),
        (r#""id":7,"method":"ping","result":{}"#, Ok(Request)),
        (
            r#""id":7,"method":"ping","error":{"code":1,"message":"m"}"#,
            Ok(Request),
        ),
        (r#""id":7,"method":"ping","error":5"#, Ok(Request)),
        (r#""id":7,"method":5,"method":"ping""#, Ok(Request)),
        (r#""id":{},"id":8,"method":"ping""#, Ok(Request)),
        (r#""id":1.5,"id":8,"method":"ping""#, Ok(Request)),
        (r#""method":"ping""#, Ok(Notification)),
        (r#""method":"ping","result":{}"#, Ok(Notification)),
        (r#""method":"ping","error":5"#, Ok(Notification)),
        (r#""id":7,"result":1"#, Ok(Result)),
        (r#""id":7,"result":null"#, Ok(Result)),
        (r#""id":7,"result":null,"error":null"#, Ok(Result)),
        (r#""id":7,"error":null,"result":{}"#, Ok(Result)),
        (r#""id":7,"method":null,"result":1"#, Ok(Result)),
        (r#""id":7,"method":5,"result":1"#, Ok(Result)),
        (r#""id":null,"result":1"#, Ok(Result)),
        (r#""method":"x","id":null,"result":5"#, Ok(Result)),
        (r#""error":5,"id":1,"result":2,"error":null"#, Ok(Result)),
        (r#""id":7,"error":{"code":1,"message":"m"}"#, Ok(Error)),
        (r#""id":null,"error":{"code":1,"message":"m"}"#, Ok(Error)),
        (
            r#""id":7,"result":{},"error":{"code":1,"message":"m"}"#,
            Ok(Error),
        ),
        (
            r#""method":"x","id":null,"error":{"code":1,"message":"m"}"#,
            Ok(Error),
        ),
        (
            r#""id":7,"error":{"code":1,"message":"m","data":3,"x":1}"#,
            Ok(Error),
        ),
        (
            r#""id":7,"error":{"code":99999999999,"message":"m"}"#,
            Ok(Error),
        ),
        (
            r#""id":7,"error":1,"error":{"code":1,"message":"x"}"#,
            Ok(Error),
        ),
        (r#""id":7,"error":[1,"m"]"#, Ok(Error)),
        (r#""id":7,"error":[1,"m",2]"#, Ok(Error)),
        (r#""id":null"#, Err(NOT)),
        (r#""id":7,"foo":1"#, Err(NOT)),
        (r#""id":7,"error":null"#, Err(NOT)),
        (r#""id":7,"method":5"#, Err(NOT)),
        (r#""id":7,"method":"ping","method":5"#, Err(NOT)),
        (r#""id":null,"method":"ping""#, Err(NOT)),
        (r#""id":8,"id":null,"method":"ping""#, Err(NOT)),
        (r#""id":{},"method":"ping""#, Err(NOT)),
        (r#""id":[],"method":"ping""#, Err(NOT)),
        (r#""id":true,"method":"ping","result":5"#, Err(NOT)),
        (r#""id":{},"result":1"#, Err(NOT)),
        (r#""id":true,"result":1"#, Err(NOT)),
        (r#""id":null,"error":null"#, Err(NOT)),
        (r#""result":1"#, Err(NOT)),
        (r#""error":5"#, Err(NOT)),
        (r#""result":{},"error":{"code":1,"message":"m"}"#, Err(NOT)),
        (r#""params":{}"#, Err(NOT)),
        (
            r#""id":7,"error":5"#,
            Err("invalid type: integer `5`, expected struct ResponseError"),
        ),
        (
            r#""id":7,"result":1,"error":false"#,
            Err("invalid type: boolean `false`, expected struct ResponseError"),
        ),
        (r#""id":7,"error":{}"#, Err("missing field `code`")),
        (
            r#""id":7,"error":{"code":1}"#,
            Err("missing field `message`"),
        ),
        (
            r#""id":7,"error":{"code":1.5,"message":"m"}"#,
            Err("invalid type: floating point `1.5`, expected i64"),
        ),
        (
            r#""id":7,"error":{"code":-0,"message":"m"}"#,
            Err("invalid type: floating point `-0.0`, expected i64"),
        ),
        (
            r#""id":7,"error":{"code":9223372036854775808,"message":"m"}"#,
            Err("invalid value: integer `9223372036854775808`, expected i64"),
        ),
        (
            r#""id":7,"error":{"code":18446744073709551616,"message":"m"}"#,
            Err("invalid type: floating point `1.8446744073709552e+19`, expected i64"),
        ),
        (
            r#""id":7,"error":{"code":1,"message":-7}"#,
            Err("invalid type: integer `-7`, expected a string"),
        ),
        (
            r#""id":7,"error":{"message":null,"code":"x"}"#,
            Err("invalid type: null, expected a string"),
        ),
        (
            r#""id":7,"error":{"code":"x","message":null,"code":1}"#,
            Err("invalid type: null, expected a string"),
        ),
        (
            r#""id":7,"error":[1]"#,
            Err("invalid length 1, expected struct ResponseError with 3 elements"),
        ),
        (
            r#""id":7,"error":[1,"m",2,3,4]"#,
            Err("invalid length 5, expected fewer elements in array"),
        ),
        (
            r#""id":7,"error":[1,null,2,3]"#,
            Err("invalid type: null, expected a string"),
        ),
        (
            r#""id":7,"error":"a\n\u0001é😀'\\\"""#,
            Err(concat!(
                r#"invalid type: string "a\n\u{1}é😀'\\\"", "#,
                "expected struct ResponseError"
            )),
        ),
    ];
    for (members, expected) in rows {
        let body = format!(r#"{{"jsonrpc":"2.0",{members}}}"#);
        match expected {
            Ok(kind) => assert_eq!(head(&body).kind, *kind, "{body}"),
            Err(message) => {
                assert_eq!(
                    refusal(body.as_bytes()),
                    (-32600, (*message).to_owned()),
                    "{body}"
                );
            }
        }
    }
}

#[test]
fn ids_are_strings_or_64_bit_integers() {
    let wrong = "data did not match any variant of untagged enum RequestId";
    for (id, value) in [
        ("0", 0),
        ("-1", -1),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id": {id} ,"method":"ping"}}"#);
        let found = head(&body).id.expect("an id");
        assert!(
            matches!(found, Id::Int(found, _) if found == value),
            "{body}"
        );
        assert_eq!(found.token().of(body.as_bytes()), id.as_bytes());
    }
    for (id, value) in [
        (r#""""#, ""),
        (r#""a""#, "a"),
        (r#""\u0041\ud83d\ude00\/""#, "A😀/"),
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
        let Some(Id::Str(found)) = head(&body).id else {
            panic!("{body}")
        };
        assert_eq!(found.get(body.as_bytes()), value);
        assert_eq!(found.token().of(body.as_bytes()), id.as_bytes());
    }
    for id in [
        "-0",
        "1.0",
        "1e2",
        "1.5",
        "-0.0",
        "0e0",
        "9223372036854775808",
        "-9223372036854775809",
        "18446744073709551616",
    ] {
        for rest in [r#""method":"ping""#, r#""result":1"#] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{id},{rest}}}"#);
            assert_eq!(
                refusal(body.as_bytes()),
                (-32600, wrong.to_owned()),
                "{body}"
            );
        }
    }
}

/// The first fault by the place of its key is the one that is told.
#[test]
fn the_version_is_checked_in_its_turn() {
    let id = "data did not match any variant of untagged enum RequestId";
    let version = r#"unsupported jsonrpc version: expected "2.0", got "1.0""#;
    for (body, expected) in [
        (r#"{"id":7,"method":"ping"}"#, "missing field `jsonrpc`"),
        (r#"{"method":"ping"}"#, "missing field `jsonrpc`"),
        (r#"{"id":7,"result":1}"#, "missing field `jsonrpc`"),
        (r#"{"id":1.5,"method":"ping"}"#, id),
        (r#"{"jsonrpc":"1.0","id":1.5,"method":"ping"}"#, version),
        (r#"{"id":1.5,"jsonrpc":"1.0","method":"ping"}"#, id),
        (
            r#"{"jsonrpc":"1.0","id":1.5,"method":"ping","jsonrpc":"2.0"}"#,
            id,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1.5,"method":"ping","jsonrpc":"1.0"}"#,
            version,
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"ping","jsonrpc":"1.0"}"#,
            version,
        ),
        (r#"{"jsonrpc":"1.0","id":7,"error":5}"#, version),
        (
            r#"{"error":5,"id":1.5,"jsonrpc":1}"#,
            "invalid type: integer `5`, expected struct ResponseError",
        ),
        (
            r#"{"error":{"code":1,"message":"m"},"id":1.5,"jsonrpc":"2.0","error":{}}"#,
            "missing field `code`",
        ),
        (
            r#"{"jsonrpc":2.0,"method":"ping"}"#,
            "invalid type: floating point `2.0`, expected a string",
        ),
        (
            r#"{"jsonrpc":null,"method":"ping"}"#,
            "invalid type: null, expected a string",
        ),
        (
            r#"{"jsonrpc":["2.0"],"id":7,"result":1}"#,
            "invalid type: sequence, expected a string",
        ),
        (
            r#"{"jsonrpc":{"a":1},"id":7,"result":1}"#,
            "invalid type: map, expected a string",
        ),
        (r#"{"jsonrpc":"1.0","id":7}"#, NOT),
        ("{}", NOT),
        ("[]", NOT),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, NOT),
        (r#""x""#, NOT),
        ("1", NOT),
        ("null", NOT),
    ] {
        assert_eq!(
            refusal(body.as_bytes()),
            (-32600, expected.to_owned()),
            "{body}"
        );
    }
    assert_eq!(
        head(r#"{"jsonrpc":"1.0","jsonrpc":"2\u002e0","method":"a"}"#).kind,
        Kind::Notification
    );
    let long = format!(r#"{{"jsonrpc":"{}","method":"a"}}"#, "x".repeat(3000));
    let (_, message) = refusal(long.as_bytes());
    assert!(
        message.ends_with(&format!(r#"got "{}""#, "x".repeat(256))),
        "{message}"
    );
}

/// Texts and positions as CLI 1.0.102 answered them.
#[test]
fn what_is_not_json_is_refused_in_serde_jsons_words() {
    let start = r#"{"jsonrpc":"2.0","id":1,"method":"ping""#;
    let with = |rest: &str| format!("{start}{rest}").into_bytes();
    let message = |inside: &str| with(&format!(r#","params":{{"message":{inside}}}}}"#));
    let rows = [
        (b"".to_vec(), "EOF while parsing a value at line 1 column 0"),
        (
            b" ".to_vec(),
            "EOF while parsing a value at line 1 column 1",
        ),
        (
            b"{".to_vec(),
            "EOF while parsing an object at line 1 column 1",
        ),
        (b"[".to_vec(), "EOF while parsing a list at line 1 column 1"),
        (b"}".to_vec(), "expected value at line 1 column 1"),
        (
            b"nul".to_vec(),
            "EOF while parsing a value at line 1 column 3",
        ),
        (b"{1:2}".to_vec(), "key must be a string at line 1 column 2"),
        (b"\xff\xfe".to_vec(), "expected value at line 1 column 1"),
        ("\u{feff}{}".into(), "expected value at line 1 column 1"),
        (
            br#"{"jsonrpc":"2.0" "id":1}"#.to_vec(),
            "expected `,` or `}` at line 1 column 18",
        ),
        (with(""), "EOF while parsing an object at line 1 column 39"),
        (
            with(r#","me"#),
            "EOF while parsing a string at line 1 column 43",
        ),
        (with("} x"), "trailing characters at line 1 column 42"),
        (with("}}"), "trailing characters at line 1 column 41"),
        (with("}\0"), "trailing characters at line 1 column 41"),
        (with(",}"), "trailing comma at line 1 column 41"),
        (
            message(r#""\ud83d""#),
            "unexpected end of hex escape at line 1 column 68",
        ),
        (
            message(r#""\ud83dx""#),
            "unexpected end of hex escape at line 1 column 68",
        ),
        (
            message(r#""\ude00""#),
            "lone leading surrogate in hex escape at line 1 column 67",
        ),
        (
            message(r#""\ud83d\u0041""#),
            "lone leading surrogate in hex escape at line 1 column 73",
        ),
        (message(r#""\x""#), "invalid escape at line 1 column 63"),
        (message(r#""\u12g4""#), "invalid escape at line 1 column 67"),
        (
            message("\"a\nb\""),
            "control character (\\u0000-\\u001F) found while parsing a string at line 2 column 0",
        ),
        (message("1e400"), "number out of range at line 1 column 65"),
        (message("NaN"), "expected value at line 1 column 61"),
        (message("01"), "invalid number at line 1 column 62"),
        (message("1."), "invalid number at line 1 column 63"),
        (message("tru"), "expected ident at line 1 column 64"),
        (
            [start.as_bytes(), b",\"params\":{\"message\":\"\xff\"}}"].concat(),
            "invalid unicode code point at line 1 column 62",
        ),
    ];
    for (body, expected) in rows {
        let shown = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(refusal(&body), (-32700, expected.to_owned()), "{shown}");
    }
    let digits = "1".repeat(400);
    let far = format!("number out of range at line 1 column {}", 60 + digits.len());
    assert_eq!(refusal(&message(&digits)), (-32700, far));
    assert!(scan(&message(&format!("{digits}e-200"))).is_ok());
    for inside in ["1e-400", "0e400", "\"\u{7f}\"", "\"\\u0000\"", " [ ] "] {
        assert!(scan(&message(inside)).is_ok(), "{inside}");
    }
    assert!(scan(&with("}\n\t \r")).is_ok());
}

#[test]
fn nesting_is_bounded_and_needs_no_stack() {
    let nested = |count: usize| {
        let (open, close) = ("[".repeat(count), "]".repeat(count));
        format!(r#"{{"jsonrpc":"2.0","method":"a","params":{{"m":{open}{close}}}}}"#)
    };
    // With the frame and its params 127 containers are open at once.
    assert_eq!(head(&nested(125)).kind, Kind::Notification);
    let (code, message) = refusal(nested(126).as_bytes());
    assert_eq!(code, -32700);
    assert!(message.starts_with("recursion limit exceeded"), "{message}");
    // A million brackets fail at the 128th.
    assert_eq!(
        refusal("[".repeat(1_000_000).as_bytes()),
        (
            -32700,
            "recursion limit exceeded at line 1 column 128".to_owned()
        )
    );
    assert_eq!(refusal("[{\"a\":".repeat(500_000).as_bytes()).0, -32700);
}

#[test]
fn the_last_duplicate_counts_at_every_level() {
    let body = concat!(
        r#"{"params":{"sessionId":"no","wait":true,"kind":"no"},"jsonrpc":"2.0","id":1,"#,
        r#""params":{"sessionId":"a","session\u0049d":"b","event":{"type":"x","type":"y"},"#,
        r#""options":{"sessionId":"c"},"options":{},"scope":{"sessionId":5,"sessionId":"d"},"#,
        r#""requestId":"r","requestId":7,"id":1,"id":"two","sessionIds":[1],"sessionIds":[],"#,
        r#""wait":true,"wait":1},"#,
        r#""id":2,"method":"no","method":"yes"}"#
    );
    let found = head(body);
    assert_eq!(text(body, found.session).as_deref(), Some("b"));
    assert_eq!(text(body, found.event_type).as_deref(), Some("y"));
    assert_eq!(text(body, found.method).as_deref(), Some("yes"));
    assert!(
        !found.wait,
        "neither of the first params nor of the first key"
    );
    let places = &found.places;
    assert_eq!(
        (places.kind, places.options_session, places.request_id),
        (None, None, None)
    );
    assert_eq!(text(body, places.scope_session).as_deref(), Some("d"));
    assert_eq!(
        places.session_ids.map(|span| span.of(body.as_bytes())),
        Some(&b"[]"[..])
    );
    assert!(matches!(places.cancel_id, Some(Id::Str(id)) if id.get(body.as_bytes()) == "two"));
    assert!(matches!(found.id, Some(Id::Int(2, _))));
    for params in ["[]", "null", r#""x""#, "5"] {
        let body = format!(
            r#"{{"jsonrpc":"2.0","method":"m","params":{{"sessionId":"a"}},"params":{params}}}"#
        );
        let found = head(&body);
        assert_eq!(
            (found.params, found.session),
            (None, None),
            "{params} counts as no params"
        );
        assert!(!found.session_other_type);
    }
}

#[test]
fn every_place_is_found() {
    let body = concat!(
        r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"toSessionId":"a","#,
        r#""expectedFromSessionId":"b","expectedSessionId":"c","#,
        r#""inheritPlanBaseFromSessionId":"d","options":{"x":{},"sessionId":"e"},"#,
        r#""scope":{"sessionId":"f"},"sessionIds":["g"],"excludeSessionIds":["h"],"#,
        r#""sessions":[{"sessionId":"i"}],"requestId":"j","id":-5,"kind":"k","#,
        r#""wait":true,"traceparent":"t","event":{"data":{"type":"no"},"type":"l"}}}"#
    );
    let found = head(body);
    let places = found.places;
    let texts = [
        (places.to_session, "a"),
        (places.expected_from, "b"),
        (places.expected, "c"),
        (places.inherit_plan, "d"),
        (places.options_session, "e"),
        (places.scope_session, "f"),
        (places.request_id, "j"),
        (places.kind, "k"),
        (found.traceparent, "t"),
        (found.event_type, "l"),
    ];
    for (found, expected) in texts {
        assert_eq!(text(body, found).as_deref(), Some(expected));
    }
    let spans = [
        (places.session_ids, r#"["g"]"#),
        (places.exclude_session_ids, r#"["h"]"#),
        (places.sessions, r#"[{"sessionId":"i"}]"#),
    ];
    for (found, expected) in spans {
        assert_eq!(
            found.map(|span| span.of(body.as_bytes())),
            Some(expected.as_bytes())
        );
    }
    assert!(matches!(places.cancel_id, Some(Id::Int(-5, _))));
    assert!(found.wait);
    assert_eq!((found.session, found.session_other_type), (None, false));
    let params = found.params.expect("an object").of(body.as_bytes());
    assert!(params.starts_with(b"{\"toSessionId\"") && params.ends_with(b"\"l\"}}"));
}

#[test]
fn what_is_of_another_type_is_not_there() {
    for value in ["null", "5", "{}", r#"["s"]"#, "true"] {
        let body =
            format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{"sessionId":{value},"wait":1,"#)
                + &format!(r#""requestId":{value},"sessions":"x","options":"x","scope":["s"]}}}}"#);
        let found = head(&body);
        assert_eq!(
            (found.session, found.session_other_type),
            (None, true),
            "{value}"
        );
        assert!(!found.wait);
        assert_eq!(found.places, Places::default());
    }
    let found = head(r#"{"jsonrpc":"2.0","method":"m","params":{"sessionId":5,"sessionId":"a"}}"#);
    assert!(found.session.is_some() && !found.session_other_type);
    let found = head(r#"{"jsonrpc":"2.0","method":"m","params":{"sessionId":"a","sessionId":5}}"#);
    assert!(found.session.is_none() && found.session_other_type);
}

#[test]
fn a_refusal_names_the_one_id_that_was_read() {
    let rows = [
        (r#"{"jsonrpc":"1.0","id":7,"method":"a"}"#, Some("7")),
        (
            r#"{"jsonrpc":"1.0","id":"\u0041","method":"a"}"#,
            Some(r#""\u0041""#),
        ),
        (r#"{"jsonrpc":"1.0","id":7,"id":7,"method":"a"}"#, None),
        (r#"{"jsonrpc":"1.0","id":7,"\u0069d":7,"method":"a"}"#, None),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"a"}"#, None),
        (
            r#"{"jsonrpc":"2.0","id":7,"params":{"id":8,"x":"\ud800"}}"#,
            Some("7"),
        ),
        (
            r#"{"jsonrpc":"2.0","params":{"id":8,"x":"\ud800"},"id":7}"#,
            None,
        ),
        (r#"{"jsonrpc":"2.0","id":7} x"#, Some("7")),
        (r#"{"jsonrpc":"2.0","id":7"#, None),
        (r#"{"jsonrpc":"2.0","id":7 "#, Some("7")),
        (r#"{"jsonrpc":"2.0","id":"7""#, Some(r#""7""#)),
        (r#"{"jsonrpc":"2.0","id":7,"id":"#, None),
        (r#"[{"id":7}]"#, None),
        (r#"{"params":{"id":7}}"#, None),
    ];
    for (body, expected) in rows {
        let reject = scan(body.as_bytes()).expect_err(body);
        let token = reject.id.map(|id| id.token().of(body.as_bytes()));
        assert_eq!(token, expected.map(str::as_bytes), "{body}");
    }
}

#[test]
fn a_backend_may_send_what_a_client_may_not() {
    let body = concat!(
        r#"{"jsonrpc":"2.0","id":3,"method":"hooks.invoke","params":{"x":"\ud83d\ud83d\u0041","#,
        r#""sessionId":"a\ude00b","\ud800":1}}"#
    );
    assert_eq!(
        scan(body.as_bytes()).map_err(|reject| reject.code),
        Err(-32700)
    );
    let found = scan_backend(body.as_bytes()).expect("lone surrogates pass");
    assert_eq!(text(body, found.session).as_deref(), Some("a\u{fffd}b"));
    assert_eq!(
        found
            .session
            .and_then(|session| session.plain(body.as_bytes())),
        None
    );
    for broken in [
        r#"{"jsonrpc":"2.0","method":"m","params":{"x":"\ud83"}}"#,
        "",
        "{",
    ] {
        let reject = scan_backend(broken.as_bytes()).expect_err(broken);
        assert_eq!(reject.code, -32700);
    }
}

/// Strings long enough for the vectorised search, with what stops it at every distance.
#[test]
fn long_strings_stop_at_the_right_byte() {
    for length in 0..200 {
        let plain = "x".repeat(length);
        for (tail, ok) in [
            ("", true),
            (r"\n", true),
            ("é", true),
            ("\u{1}", false),
            ("\u{1f}", false),
        ] {
            for rest in ["", "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\\\\zzzzzzzzzz"] {
                let body = format!(
                    r#"{{"jsonrpc":"2.0","method":"m","params":{{"kind":"{plain}{tail}{rest}"}}}}"#
                );
                let found = scan(body.as_bytes());
                assert_eq!(found.is_ok(), ok, "{body}");
                if let Ok(found) = found {
                    let kind = found.places.kind.expect("a string");
                    let expected = format!("{plain}{tail}{rest}");
                    assert_eq!(kind.span.of(body.as_bytes()), expected.as_bytes());
                    let meant = expected.replace(r"\n", "\n").replace(r"\\", r"\");
                    assert_eq!(kind.get(body.as_bytes()), meant);
                }
            }
        }
    }
}

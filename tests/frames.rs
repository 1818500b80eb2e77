//! Frames and heads against slow references: generated input, recorded traffic, fuzz corpora.
//!
//! What is asked of the product stands in `fuzz/checks/`, which the fuzz targets use as well.

use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest},
    sample::select,
};
use taxiway::core::{
    frame::{FrameLimits, write_header},
    scan::{Kind, scan, scan_backend, scan_backend_whole},
};

#[path = "../fuzz/checks/mod.rs"]
mod checks;

const RECORDED: &str = concat!(
    include_str!("golden/from_backends.jsonl"),
    include_str!("golden/from_clients.jsonl")
);

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// The inside of a string, as written. `surrogate` stands where a lone surrogate may.
fn inside(surrogate: &'static str) -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[a-zA-Z0-9 _.{}:,\\[\\]-]{0,12}",
        1 => "[a-z]{60,140}",
        1 => select(vec![
            r"\n", r"\t", r"\r", r"\b", r"\f", r"\/", r"\\", r#"\""#, r"\u0000", r"\u001f",
            r"\u0041", r"\u00e9", r"\uFFFF", r"\ud83d\ude00", r"\uDBFF\uDFFF", "é", "😀", "\u{7f}",
        ]).prop_map(str::to_owned),
        1 => Just(surrogate.to_owned()),
    ];
    vec(part, 0..4).prop_map(|parts| parts.concat())
}

fn text(surrogate: &'static str) -> impl Strategy<Value = String> {
    inside(surrogate).prop_map(|inside| format!("\"{inside}\""))
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        "[1-9][0-9]{280,320}(\\.[0-9]{1,3})?(e-?[0-9]{1,2})?",
        any::<f64>()
            .prop_filter("JSON", |number| number.is_finite())
            .prop_map(|n| n.to_string()),
        "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?",
        select(vec![
            "0",
            "-0",
            "7",
            "-1",
            "1.0",
            "1e2",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "-9223372036854775809",
            "18446744073709551615",
            "18446744073709551616",
            "1e308",
            "1e309",
            "-1e400",
            "0e999",
            "1e-999",
            "0.0",
            "17976931348623157e292",
            "17976931348623159e292",
            "18446744073709551615e289",
            "1e99999999999",
            "0e99999999999",
            "1e-99999999999",
            "01",
            "-",
            "1.",
            "1e",
            ".5",
            "+1",
        ])
        .prop_map(str::to_owned),
    ]
}

/// Any value, as written, with white space here and there.
fn value(surrogate: &'static str) -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        3 => text(surrogate),
        2 => number(),
        2 => select(vec!["null", "true", "false"]).prop_map(str::to_owned),
        1 => (100usize..140, any::<bool>()).prop_map(|(depth, objects)| if objects {
            format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth))
        } else {
            format!("{}{}", "[".repeat(depth), "]".repeat(depth))
        }),
    ];
    leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            (vec(inner.clone(), 0..4), space())
                .prop_map(|(elements, space)| format!("[{}]", elements.join(&format!("{space},")))),
            object(inner, surrogate),
        ]
    })
}

fn space() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just(String::new()), 1 => "[ \\t\\r\\n]{1,3}"]
}

/// A key that means something, or not, perhaps with one letter escaped.
fn key(surrogate: &'static str) -> impl Strategy<Value = String> {
    let names = select(vec![
        "jsonrpc",
        "id",
        "method",
        "params",
        "result",
        "error",
        "code",
        "message",
        "data",
        "sessionId",
        "event",
        "type",
        "options",
        "scope",
        "wait",
        "traceparent",
        "toSessionId",
        "expectedFromSessionId",
        "expectedSessionId",
        "inheritPlanBaseFromSessionId",
        "sessionIds",
        "excludeSessionIds",
        "sessions",
        "requestId",
        "kind",
        "ID",
        "session",
        "",
    ]);
    let escaped = (names.clone(), any::<prop::sample::Index>()).prop_map(|(name, at)| {
        let at = if name.is_empty() {
            0
        } else {
            at.index(name.len())
        };
        let letter = name[at..]
            .chars()
            .next()
            .map(|c| format!("\\u{:04x}", u32::from(c)));
        format!(
            "{}{}{}",
            &name[..at],
            letter.unwrap_or_default(),
            name.get(at + 1..).unwrap_or("")
        )
    });
    let often = select(vec!["sessionId", "id", "event", "type", "code"]);
    prop_oneof![
        4 => often.prop_map(str::to_owned),
        8 => names.prop_map(str::to_owned),
        2 => escaped,
        1 => inside(surrogate),
    ]
}

fn object(
    value: impl Strategy<Value = String> + Clone + 'static,
    surrogate: &'static str,
) -> impl Strategy<Value = String> {
    let member = (key(surrogate), space(), space(), value)
        .prop_map(|(key, before, after, value)| format!("{before}\"{key}\":{after}{value}"));
    (vec(member, 0..6), space())
        .prop_map(|(members, space)| format!("{{{}{space}}}", members.join(",")))
}

/// Members of a frame, more often right than wrong.
fn frame(surrogate: &'static str) -> impl Strategy<Value = String> {
    let param_value = prop_oneof![
        3 => text(surrogate),
        1 => Just("true".to_owned()),
        1 => vec(text(surrogate), 0..3).prop_map(|texts| format!("[{}]", texts.join(","))),
        2 => value(surrogate),
    ]
    .boxed();
    let error = prop_oneof![
        Just(r#"{"code":-32603,"message":"m"}"#.to_owned()),
        (number(), text(surrogate)).prop_map(|(code, text)| format!(r#"[{code},{text}]"#)),
        (number(), value(surrogate))
            .prop_map(|(code, value)| format!(r#"{{"message":{value},"code":{code}}}"#)),
        object(param_value.clone(), surrogate),
        value(surrogate),
    ];
    let id = prop_oneof![
        3 => (0i64..1000).prop_map(|id| id.to_string()),
        2 => text(surrogate),
        1 => number(),
        1 => value(surrogate),
    ];
    let member = |key: &'static str, value: proptest::strategy::BoxedStrategy<String>| {
        value.prop_map(move |value| format!("\"{key}\":{value}"))
    };
    let version = prop_oneof![20 => Just(r#""2.0""#.to_owned()), 1 => value(surrogate)];
    let method = prop_oneof![10 => text(surrogate), 1 => value(surrogate)];
    let params = prop_oneof![5 => object(param_value, surrogate), 1 => value(surrogate)];
    let members = vec(
        prop_oneof![
            2 => member("jsonrpc", version.boxed()),
            2 => member("id", id.boxed()),
            2 => member("method", method.boxed()),
            3 => member("params", params.boxed()),
            1 => member("result", value(surrogate).boxed()),
            1 => member("error", error.boxed()),
            1 => (key(surrogate), value(surrogate)).prop_map(|(k, v)| format!("\"{k}\":{v}")),
        ],
        0..6,
    );
    let start = prop_oneof![9 => Just(r#"{"jsonrpc":"2.0""#), 1 => Just(r#"{"x":1"#)];
    (start, members, space(), space()).prop_map(|(start, members, before, after)| {
        let members: String = members.iter().map(|member| format!(",{member}")).collect();
        format!("{before}{start}{members}{before}}}{after}")
    })
}

/// How nearly all calls are spelled, with anything behind the session.
fn request(surrogate: &'static str) -> impl Strategy<Value = String> {
    let id = prop_oneof![
        (0i64..1000).prop_map(|id| id.to_string()),
        text(surrogate),
        number()
    ];
    let more = (
        prop_oneof![4 => key(surrogate), 1 => Just("sessionId".to_owned())],
        value(surrogate),
    );
    let more = prop_oneof![
        3 => more.prop_map(|(key, value)| format!(",\"{key}\":{value}")),
        1 => Just(",\"event\":{\"type\":\"t\"}".to_owned()),
    ];
    let tail = prop_oneof![
        6 => Just("}}".to_owned()),
        1 => (key(surrogate), value(surrogate)).prop_map(|(k, v)| format!("}},\"{k}\":{v}}}")),
        1 => value(surrogate).prop_map(|id| format!("}},\"id\":{id}}}")),
    ];
    (id, inside(surrogate), inside(surrogate), vec(more, 0..3), tail).prop_map(
        |(id, method, session, more, tail)| {
            let more = more.concat();
            format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{"sessionId":"{session}"{more}{tail}"#
            )
        },
    )
}

/// Bytes written over, put in or taken out.
fn mutate(mut body: Vec<u8>, edits: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    for (index, edit, byte) in edits {
        if body.is_empty() {
            break;
        }
        let at = index.index(body.len());
        match edit % 5 {
            0 => body[at] = *byte,
            1 => body[at] ^= 1 << (byte % 8),
            2 => body.insert(at, *byte),
            3 => {
                body.remove(at);
            }
            _ => body.truncate(at),
        }
    }
    body
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn scan_agrees_with_serde_json(body in frame(r"\u0041")) {
        checks::scan::check_scan(body.as_bytes());
    }

    #[test]
    fn scan_agrees_with_serde_json_on_requests_as_sdks_write_them(
        body in request(r"\u0041"),
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 0..2),
    ) {
        checks::scan::check_scan(&mutate(body.into_bytes(), &edits));
    }

    #[test]
    fn scan_agrees_with_serde_json_on_damaged_frames(
        body in frame(r"\ud83d"),
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 0..4),
    ) {
        checks::scan::check_scan(&mutate(body.into_bytes(), &edits));
    }

    #[test]
    fn scan_agrees_with_serde_json_on_any_value(body in value(r"\udc00")) {
        checks::scan::check_scan(body.as_bytes());
    }

    #[test]
    fn scan_agrees_with_serde_json_on_damaged_traffic(
        body in select(RECORDED.lines().collect::<Vec<_>>()),
        edits in vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..4),
    ) {
        checks::scan::check_scan(&mutate(body.as_bytes().to_vec(), &edits));
    }

    /// Where a lone surrogate stands does not matter to what a backend's frame says elsewhere.
    #[test]
    fn backends_may_send_lone_surrogates(body in frame(r"\ud83d")) {
        let clean = body.replace(r"\ud83d\ude00", "PAIR").replace(r"\ud83d", r"\u0058");
        let clean = clean.replace("PAIR", r"\ud83d\ude00");
        let expected = scan(clean.as_bytes());
        if let Ok(expected) = expected {
            proptest::prop_assert_eq!(scan_backend_whole(body.as_bytes()), Ok(expected));
            let lone = clean != body;
            proptest::prop_assert_eq!(scan(body.as_bytes()).is_err(), lone);
        }
    }

    #[test]
    fn any_chunking_gives_the_same_frames(
        parts in vec(
            prop_oneof![
                6 => vec(any::<u8>(), 0..40).prop_map(|body| {
                    let mut frame = Vec::new();
                    write_header(body.len(), &mut frame);
                    frame.extend(body);
                    frame
                }),
                2 => (
                    select(vec![
                        "content-length:", "Content-Length: ", "Content-Length: +", "X: 1\r\nA:\r\n\
                         Content-Length:\t", "Content-Length: 7\r\ncontent-length: ",
                    ]),
                    vec(any::<u8>(), 0..20),
                    select(vec!["\r\n\r\n", " \r\n\r\n", "abc\r\nX: y\r\n\r\n", "\n\r\n\r\n"]),
                )
                    .prop_map(|(start, body, end)| {
                        let header = format!("{start}{}{end}", body.len());
                        [header.as_bytes(), &body].concat()
                    }),
                1 => "[A-Za-z:\\r\\n 0-9-]{0,80}".prop_map(String::into_bytes),
            ],
            0..6,
        ),
        sizes in vec(1usize..30, 1..8),
        header in 1usize..120,
        frame in 0usize..60,
    ) {
        checks::frame::check_frames(&parts.concat(), FrameLimits { header, frame }, &sizes);
    }
}

/// Recorded traffic: every shape that the CLI and the Node SDK were seen to send.
#[test]
fn recorded_frames_are_read_alike_by_all_scanners() {
    let backends = include_str!("golden/from_backends.jsonl");
    let clients = include_str!("golden/from_clients.jsonl");
    assert!(backends.lines().count() >= 13 && clients.lines().count() >= 19);
    for body in backends.lines().chain(clients.lines()).map(str::as_bytes) {
        checks::scan::check_scan(body);
        assert!(scan(body).is_ok());
        assert_eq!(scan_backend(body), scan(body));
    }
    for body in clients.lines().map(str::as_bytes) {
        let head = scan(body).expect("a frame");
        let session = head.session.is_some();
        let names = String::from_utf8_lossy(body).contains("sessionId");
        assert_eq!(session, names && head.kind == Kind::Request);
    }
}

/// Spaces where the CLI writes none.
#[test]
fn a_space_before_the_last_brace_is_nothing_of_what_stands_before_it() {
    for body in [
        r#"{"jsonrpc":"2.0","id":1,"result":{} }"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"} }"#,
        r#"{"jsonrpc":"2.0","method":"session.event","params":{"sessionId":"s","event":{"type":"t"}} }"#,
    ] {
        checks::scan::check_scan(body.as_bytes());
    }
}

/// What the fuzzer found worth keeping, asked the same questions without a fuzzer.
#[test]
fn fuzz_corpora_hold() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
    for (name, least, check) in [
        ("frame", 20, checks::frame::fuzz_frames as fn(&[u8])),
        (
            "proxy_header",
            10,
            checks::proxy_header::check_header as fn(&[u8]),
        ),
        ("scan", 20, checks::scan::check_scan as fn(&[u8])),
    ] {
        let files = std::fs::read_dir(format!("{root}/{name}")).expect("the corpus is committed");
        let mut count = 0;
        for file in files {
            let bytes = std::fs::read(file.expect("readable").path()).expect("readable");
            check(&bytes);
            count += 1;
        }
        assert!(count >= least, "only {count} inputs in the corpus {name}");
    }
}

//! Answers: JSON, text, the page, errors in one form.
//!
//! Must not decide anything.

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS},
};
use http_body_util::Full;
use serde::Serialize;
use serde_json::{Value, json};

use super::{ActionError, gate::Refusal};

/// Every answer is whole before it is sent.
pub(super) type Reply = Response<Full<Bytes>>;

/// An answer of some type.
pub(super) fn content(status: StatusCode, media: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    set(&mut reply, CONTENT_TYPE, HeaderValue::from_static(media));
    set(
        &mut reply,
        CACHE_CONTROL,
        HeaderValue::from_static("no-store"),
    );
    set(
        &mut reply,
        X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    reply
}

/// Adds a header.
pub(super) fn set(reply: &mut Reply, name: HeaderName, value: HeaderValue) {
    reply.headers_mut().insert(name, value);
}

/// A value as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => content(status, "application/json", body),
        // Only a map with keys that are no strings gets here, and no view has one.
        Err(error) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            &error.to_string(),
        ),
    }
}

/// `{"error":{"code","message"}}`
pub(super) fn failure(status: StatusCode, code: &str, message: &str) -> Reply {
    detailed_failure(status, code, message, None)
}

/// The same, with more for programs under `details`.
pub(super) fn detailed_failure(
    status: StatusCode,
    code: &str,
    message: &str,
    details: Option<&Value>,
) -> Reply {
    let mut error = json!({ "code": code, "message": message });
    if let Some(details) = details {
        error["details"] = details.clone();
    }
    content(
        status,
        "application/json",
        json!({ "error": error }).to_string(),
    )
}

/// The method does not fit the route.
pub(super) fn wrong_method(allowed: &'static str) -> Reply {
    let message = format!("this takes {allowed}");
    let mut reply = failure(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        &message,
    );
    set(&mut reply, ALLOW, HeaderValue::from_static(allowed));
    reply
}

/// Nothing is there.
pub(super) fn not_found() -> Reply {
    failure(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing under this path",
    )
}

/// The request makes no sense.
pub(super) fn bad_request(message: &str) -> Reply {
    failure(StatusCode::BAD_REQUEST, "bad_request", message)
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match refusal {
            Refusal::ForeignHost => (StatusCode::FORBIDDEN, "foreign_host"),
            Refusal::ForeignOrigin => (StatusCode::FORBIDDEN, "foreign_origin"),
            Refusal::TokenNotConfigured => (StatusCode::FORBIDDEN, "token_not_configured"),
            Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Refusal::NotJson => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json"),
        };
        let mut reply = failure(status, code, &refusal.to_string());
        if refusal == Refusal::Unauthorized {
            set(
                &mut reply,
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer"),
            );
        }
        reply
    }
}

impl From<&ActionError> for Reply {
    fn from(error: &ActionError) -> Self {
        let (status, code) = match error {
            ActionError::UnknownBackend(_) => (StatusCode::NOT_FOUND, "unknown_backend"),
            ActionError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            ActionError::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            ActionError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        failure(status, code, &error.to_string())
    }
}

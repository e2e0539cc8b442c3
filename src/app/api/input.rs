//! What requests carry, checked: bodies, query parameters and path segments, each refused as a problem.

use axum::{
    extract::{
        FromRequest, FromRequestParts, Path, Query,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
};

use super::problem::{Kind, Refusal};

/// A JSON body.
#[derive(Debug, FromRequest)]
#[from_request(via(axum::Json), rejection(Refusal))]
pub(super) struct Body<T>(pub(super) T);

/// The query's parameters.
#[derive(Debug, FromRequestParts)]
#[from_request(via(Query), rejection(Refusal))]
pub(super) struct Params<T>(pub(super) T);

/// The path's variable segments.
#[derive(Debug, FromRequestParts)]
#[from_request(via(Path), rejection(Refusal))]
pub(super) struct Segment<T>(pub(super) T);

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        let status = rejection.status();
        let kind = if status == StatusCode::PAYLOAD_TOO_LARGE {
            Kind::TooLarge
        } else if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            Kind::WrongType
        } else {
            Kind::InvalidRequest
        };
        Self::new(kind, rejection.body_text())
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Kind::InvalidRequest, rejection.body_text())
    }
}

impl From<PathRejection> for Refusal {
    fn from(rejection: PathRejection) -> Self {
        Self::new(Kind::InvalidRequest, rejection.body_text())
    }
}

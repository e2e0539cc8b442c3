//! Refusals, as RFC 9457 problems: one closed list of kinds, each with its status.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

use crate::{
    app::{
        chain,
        desk::DeskError,
        door::{Refused, TokenError},
        orders::Problem,
    },
    provision::executor::OperationError,
    store::StoreError,
};

/// RFC 9457 §3.
const PROBLEM_JSON: &str = "application/problem+json";

macro_rules! kinds {
    ($( $variant:ident $label:literal $status:ident $title:literal )*) => {
        /// What kind of refusal.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Kind {
            $( #[doc = $title] $variant, )*
        }

        impl Kind {
            /// Every kind, for the documentation's test.
            #[cfg(test)]
            const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// Its name in `type`.
            const fn label(self) -> &'static str {
                match self { $( Self::$variant => $label, )* }
            }

            const fn status(self) -> StatusCode {
                match self { $( Self::$variant => StatusCode::$status, )* }
            }

            const fn title(self) -> &'static str {
                match self { $( Self::$variant => $title, )* }
            }
        }
    };
}

kinds! {
    InvalidRequest   "invalid-request"    BAD_REQUEST            "The request is not understood"
    NotLoggedIn      "not-logged-in"      UNAUTHORIZED           "A token is needed"
    InvalidToken     "invalid-token"      UNAUTHORIZED           "The token is not good"
    ScopeTooSmall    "scope-too-small"    FORBIDDEN              "The token may not do this"
    UserNotAllowed   "user-not-allowed"   FORBIDDEN              "This user may not use the socket"
    WrongOrigin      "wrong-origin"       FORBIDDEN              "The request comes from another site"
    NoSuchPath       "no-such-path"       NOT_FOUND              "There is no such path"
    NotFound         "not-found"          NOT_FOUND              "There is no such thing"
    WrongMethod      "wrong-method"       METHOD_NOT_ALLOWED     "This path has no such method"
    NotNow           "not-now"            CONFLICT               "It cannot be done as things stand"
    NameTaken        "name-taken"         CONFLICT               "The name is taken"
    UnderWay         "under-way"          CONFLICT               "The same request is under way"
    AnswerNotKept    "answer-not-kept"    CONFLICT               "It was done, and its answer was too large to be kept"
    TooLarge         "too-large"          PAYLOAD_TOO_LARGE      "The request is too large"
    WrongType        "wrong-type"         UNSUPPORTED_MEDIA_TYPE "The body is not JSON"
    CannotBe         "cannot-be"          UNPROCESSABLE_ENTITY   "It cannot be done"
    KeyReused        "key-reused"         UNPROCESSABLE_ENTITY   "The Idempotency-Key stands for another request"
    LockedOut        "locked-out"         TOO_MANY_REQUESTS      "Too many unknown tokens came from this address"
    Internal         "internal"           INTERNAL_SERVER_ERROR  "bootflip cannot do it"
    PoolAway         "pool-away"          BAD_GATEWAY            "A pool does not answer"
    StoreAway        "store-away"         SERVICE_UNAVAILABLE    "The database cannot be used"
}

/// A refusal; handlers return it as their error.
#[derive(Debug)]
pub struct Refusal {
    kind: Kind,
    detail: String,
    wait: Option<Duration>,
}

impl Refusal {
    /// Of this kind, with the particulars.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), wait: None }
    }

    /// There is nothing of that name.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, what)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.kind.status();
        let problem = Problem {
            kind: format!("urn:bootflip:problem:{}", self.kind.label()),
            title: self.kind.title().to_owned(),
            status: status.as_u16(),
            detail: self.detail,
        };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::UNAUTHORIZED {
            // RFC 6750 §3.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"bootflip\""));
        }
        if let Some(wait) = self.wait {
            headers.insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
        }
        response
    }
}

/// How refusals stand in the OpenAPI document: whatever status is not named is a problem.
#[derive(Debug)]
pub(super) struct Problems;

impl utoipa::IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response =
            ResponseBuilder::new().description("A problem (RFC 9457)").content(PROBLEM_JSON, content).build();
        BTreeMap::from([("default".to_owned(), RefOr::T(response))])
    }
}

impl From<DeskError> for Refusal {
    fn from(error: DeskError) -> Self {
        let kind = match &error {
            DeskError::Operation(OperationError::NoSuchJob(_)) | DeskError::NoSuchVm(_) => Kind::NotFound,
            DeskError::Operation(OperationError::NotNow { .. }) => Kind::NotNow,
            DeskError::Operation(OperationError::Store(_)) => Kind::StoreAway,
            DeskError::Operation(OperationError::NoSuchPool(_))
            | DeskError::Preview(_)
            | DeskError::Empty => Kind::CannotBe,
            DeskError::Pool { .. } => Kind::PoolAway,
            DeskError::Log { .. } => Kind::Internal,
        };
        Self::new(kind, chain(&error))
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::new(Kind::StoreAway, chain(&error))
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let (kind, wait) = match &refused {
            Refused::Unknown | Refused::Expired => (Kind::InvalidToken, None),
            Refused::LockedOut(wait) => (Kind::LockedOut, Some(*wait)),
            Refused::Store(_) => (Kind::StoreAway, None),
        };
        Self { kind, detail: chain(&refused), wait }
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        let kind = match &error {
            TokenError::Name(_) => Kind::InvalidRequest,
            TokenError::Taken(_) => Kind::NameTaken,
            TokenError::Random(_) => Kind::Internal,
            TokenError::Store(_) => Kind::StoreAway,
        };
        Self::new(kind, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_problem_is_in_the_documentation() {
        let page = include_str!("../../../docs/api.md");
        for kind in Kind::ALL {
            let row = format!("| `{}` | {} |", kind.label(), kind.status().as_u16());
            assert!(page.contains(&row), "docs/api.md has no row {row}");
        }
    }

    #[test]
    fn refusal_is_a_problem_and_says_when_to_come_back() {
        let refusal = Refusal::from(Refused::LockedOut(Duration::from_secs(90)));
        let response = refusal.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "90");
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let response = Refusal::new(Kind::NotLoggedIn, "x").into_response();
        assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
    }
}

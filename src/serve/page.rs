//! The page at `/`: one file without anything from elsewhere, which the browser is told to hold it to.

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// The policy by which a browser runs the page's own script and style, and speaks with this server alone.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |tag: &str| {
        let (_, rest) = PAGE.split_once(&format!("<{tag}>")).unwrap_or_default();
        let (content, _) = rest.split_once(&format!("</{tag}>")).unwrap_or_default();
        STANDARD.encode(Sha256::digest(content))
    };
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    );
    HeaderValue::from_str(&policy).expect("printable")
});

/// The page.
pub(super) async fn page() -> Response {
    let mut response = Html(PAGE).into_response();
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_small_file_that_asks_for_nothing_from_elsewhere() {
        assert!(PAGE.len() < 200 << 10, "{} bytes", PAGE.len());
        for elsewhere in ["http://", "https://", "//cdn", "src=", "@import", "url(", "innerHTML", "style=\""] {
            assert!(!PAGE.contains(elsewhere), "{elsewhere}");
        }
        let policy = POLICY.to_str().expect("text");
        let empty = STANDARD.encode(Sha256::digest(""));
        assert!(!policy.contains(&empty), "script and style were found: {policy}");
    }
}

//! The right to use the server: keys, and the hosts and origins that a browser may speak for.
//!
//! A page on the web can make the browser of a user send requests to this machine. Such a request names the page's
//! origin, or, after the name of the page's host was bound to this machine's address, that host: both are checked.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use sha2::{Digest, Sha256};

use super::failure::{Failure, Outcome};
use crate::error::{Error, Result};
use crate::files::open;

/// The largest file of keys.
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;
/// The fewest characters of a key.
const KEY_CHARACTERS: usize = 16;

/// The keys of the server, as hashes.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Reads a file with one key a line.
    ///
    /// # Errors
    /// Input: the file cannot be read, has no key, or a key that is short or cannot stand in a header.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = open::read(path, MAX_KEY_FILE_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::input(path, "is not UTF-8 text"))?;
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let (mut keys, mut errors) = (Vec::new(), Vec::new());
        for (line, key) in lines.filter(|(_, key)| !key.is_empty()) {
            let place = crate::error::Place::file(path).line(line);
            match key.chars().all(|symbol| symbol.is_ascii_graphic()) {
                false => {
                    errors.push(Error::input(place, "has other characters than a header can carry; expected a key"))
                }
                true if key.len() < KEY_CHARACTERS => {
                    let message = format!("has {} characters; a key has at least {KEY_CHARACTERS}", key.len());
                    errors.push(Error::input(place, message).hint("`openssl rand -hex 32` makes one"));
                }
                true => keys.push(Sha256::digest(key).into()),
            }
        }
        if keys.is_empty() && errors.is_empty() {
            errors.push(Error::input(path, "has no key; expected one a line").hint("`openssl rand -hex 32` makes one"));
        }
        Error::none_of(errors, Self(keys))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `key` is one of them. The time depends on the number of keys alone: hashes are compared to the end.
    fn contains(&self, key: &[u8]) -> bool {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let differs = |known: &[u8; 32]| known.iter().zip(hash).fold(0, |bits, (known, byte)| bits | (known ^ byte));
        self.0.iter().fold(false, |found, known| found | (std::hint::black_box(differs(known)) == 0))
    }
}

/// The rules of access.
#[derive(Debug, Clone)]
pub(super) struct Access {
    keys: Keys,
    /// Whether requests come from this machine alone.
    is_loopback: bool,
    /// Names under which the server may be asked, beside addresses.
    hosts: Vec<String>,
    /// Origins whose pages may use the server from a browser.
    origins: Vec<String>,
}

impl Access {
    /// The rules of a server at `address`.
    ///
    /// # Errors
    /// Input: another address than this machine's own, without a key; an origin that is none.
    pub(super) fn new(address: SocketAddr, keys: Keys, hosts: &[String], origins: &[String]) -> Result<Self> {
        let is_loopback = address.ip().is_loopback();
        if !is_loopback && keys.is_empty() {
            let message = format!("is {}: other machines reach it, and it needs a key", address.ip());
            return Err(Error::input("--host", message).hint("give a file with a key by `--key-file`"));
        }
        let is_origin = |origin: &&String| {
            let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ']))
        };
        if let Some(origin) = origins.iter().find(|origin| !is_origin(origin)) {
            let message = format!("is `{origin}`; expected an origin, as `https://example.org`");
            return Err(Error::input("--allow-origin", message));
        }
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(Self { keys, is_loopback, hosts, origins: origins.to_vec() })
    }

    /// Checks where a request was sent to and which page sent it; the origin, if it is one of the list.
    pub(super) fn check_source(&self, uri: &Uri, headers: &HeaderMap) -> Outcome<Option<HeaderValue>> {
        let host = one(headers, header::HOST).ok_or_else(|| Failure::invalid("the header `Host` must stand once"))?;
        let host = host.to_str().map_err(|_| Failure::foreign("the host is not one of this server"))?;
        let is_same = uri.authority().is_none_or(|authority| authority.as_str().eq_ignore_ascii_case(host));
        if !self.is_own_host(host) || !is_same {
            return Err(Failure::foreign("the host is not one of this server; `--allow-host` adds one"));
        }
        if !headers.contains_key(header::ORIGIN) {
            return Ok(None);
        }
        let foreign = || Failure::foreign("pages of this origin may not use the server; `--allow-origin` adds one");
        let origin = one(headers, header::ORIGIN).ok_or_else(foreign)?;
        let text = origin.to_str().map_err(|_| foreign())?;
        if self.origins.iter().any(|allowed| allowed == text) {
            return Ok(Some(origin.clone()));
        }
        let of_page = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        if of_page.is_some_and(|page| page.eq_ignore_ascii_case(host)) { Ok(None) } else { Err(foreign()) }
    }

    /// Whether `host`, with or without a port, is a name of this server. An address cannot be bound to another one, so it
    /// is always the server's; on a server for this machine alone it has to be the machine's own.
    fn is_own_host(&self, host: &str) -> bool {
        let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) if port.is_empty() || is_port(port) => address,
            Some(_) => return false,
            None => host.rsplit_once(':').map_or(host, |(name, port)| if is_digits(port) { name } else { host }),
        };
        let bare = bare.to_ascii_lowercase();
        match bare.parse::<IpAddr>() {
            Ok(address) => !self.is_loopback || address.is_loopback(),
            Err(_) => bare == "localhost" || self.hosts.contains(&bare),
        }
    }

    /// Checks the key of a request.
    pub(super) fn check_key(&self, headers: &HeaderMap) -> Outcome<()> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let value = one(headers, header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let (scheme, key) = value.split_at_checked("Bearer ".len()).unwrap_or_default();
        let is_known = self.keys.contains(key);
        if is_known && scheme.eq_ignore_ascii_case(b"Bearer ") { Ok(()) } else { Err(Failure::no_key()) }
    }

    /// Whether a request is a browser's question whether a page may send another one.
    pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
        method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    }
}

/// The value of a header that stands once.
fn one(headers: &HeaderMap, name: header::HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(is_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(address: &str, hosts: &[&str], origins: &[&str]) -> Access {
        let keys = Keys(vec![Sha256::digest("a key of some length").into()]);
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Access::new(address.parse().expect("an address"), keys, &owned(hosts), &owned(origins)).expect("rules")
    }

    fn headers(list: &[(header::HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("a value"))).collect()
    }

    #[test]
    fn a_server_for_other_machines_needs_a_key() {
        for (address, starts) in [("127.0.0.1:1", true), ("[::1]:1", true), ("0.0.0.0:1", false), ("[::]:1", false)] {
            let rules = Access::new(address.parse().expect("an address"), Keys::default(), &[], &[]);
            assert_eq!(rules.is_ok(), starts, "{address}");
        }
    }

    #[test]
    fn only_the_hosts_of_the_server_are_its_hosts() {
        let local = access("127.0.0.1:80", &["Box"], &[]);
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:80", "box:80"] {
            assert!(local.is_own_host(host), "{host}");
        }
        let foreign = "evil.com,localhost.evil.com,127.0.0.1.,2130706433,0x7f.1,127.1,[::1%25lo],[::1]x,192.168.0.1,:80,,localhost:80:80";
        for host in foreign.split(',') {
            assert!(!local.is_own_host(host), "{host}");
        }
        let open = access("0.0.0.0:80", &[], &[]);
        assert!(open.is_own_host("192.168.0.1:80") && !open.is_own_host("evil.com"));
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let rules = access("127.0.0.1:80", &[], &["https://page.example"]);
        let source = |origin: &[&str]| {
            let mut list = headers(&[(header::HOST, "localhost:80")]);
            origin.iter().for_each(|origin| {
                list.append(header::ORIGIN, HeaderValue::from_str(origin).expect("a value"));
            });
            rules.check_source(&Uri::from_static("/v1/models"), &list)
        };
        assert_eq!(source(&[]), Ok(None));
        assert_eq!(source(&["http://localhost:80"]), Ok(None));
        assert_eq!(source(&["https://page.example"]), Ok(Some(HeaderValue::from_static("https://page.example"))));
        for origin in ["null", "http://evil.com", "http://localhost", "file://", "https://page.example.evil.com", ""] {
            assert!(source(&[origin]).is_err(), "{origin}");
        }
        assert!(source(&["https://page.example", "null"]).is_err());
        let mut list = headers(&[(header::HOST, "localhost")]);
        list.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(rules.check_source(&Uri::from_static("/"), &list).is_err());
        let list = headers(&[(header::HOST, "localhost")]);
        assert!(rules.check_source(&Uri::from_static("http://evil.com/v1/models"), &list).is_err());
    }

    #[test]
    fn only_the_whole_key_opens() {
        let rules = access("0.0.0.0:80", &[], &[]);
        let key = |value: &str| rules.check_key(&headers(&[(header::AUTHORIZATION, value)])).is_ok();
        assert!(key("Bearer a key of some length") && key("bearer a key of some length"));
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer a key of some lengt",
            "Bearer A key of some length",
            "a key of some length",
        ] {
            assert!(!key(value), "{value}");
        }
        assert!(rules.check_key(&HeaderMap::new()).is_err());
        let mut twice = headers(&[(header::AUTHORIZATION, "Bearer a key of some length")]);
        twice.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer a key of some length"));
        assert!(rules.check_key(&twice).is_err());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test makes its input")]
    fn a_file_of_keys_is_read_line_by_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Keys::read(&path)
        };
        let keys = read("0123456789abcdef\n\n  fedcba9876543210 \r\n").expect("keys");
        assert!(keys.contains(b"0123456789abcdef") && keys.contains(b"fedcba9876543210") && !keys.contains(b""));
        for (text, expected) in [("\n", "has no key"), ("short\n", ":1: has 5"), ("0123456789 abcdef\n", "characters")]
        {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

//! Secrets and personal data in texts: where they stand and what kind they are; what they are is never reported.
//!
//! Numbers with check digits count only where these are right: payment cards (Luhn, ISO/IEC 7812), bank accounts (ISO 7064
//! MOD 97-10), Chinese identity cards (GB 11643). Addresses that are reserved for examples (RFC 2606, RFC 5737) are not
//! counted. Names and postal addresses are not found.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::answers::regex;
use super::catalogue::Code;
use super::view::View;

/// A secret: its place in the text and its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Bytes of the text.
    pub place: Range<usize>,
    /// Its kind.
    pub code: Code,
}

/// The placeholder for a secret of this kind.
pub fn placeholder(code: Code) -> &'static str {
    match code {
        Code::Email => "[EMAIL]",
        Code::Phone => "[PHONE]",
        Code::Card => "[CARD]",
        Code::Iban => "[IBAN]",
        Code::NationalId => "[ID]",
        Code::IpAddress => "[IP]",
        Code::UrlPassword => "[URL]",
        Code::PrivateKey => "[PRIVATE KEY]",
        _ => "[KEY]",
    }
}

/// A kind of secret: its pattern, a byte that every match has, and a further test. The first group of a pattern, where
/// there is one, is the secret within the match.
struct Kind {
    code: Code,
    needs: fn(&str) -> bool,
    pattern: LazyLock<Regex>,
    holds: fn(&str) -> bool,
}

fn has_digit(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
}

fn always(_: &str) -> bool {
    true
}

/// The kinds in the order of precedence: of two that overlap, the earlier one counts.
static KINDS: [Kind; 12] = [
    Kind {
        code: Code::PrivateKey,
        needs: |text| text.contains("PRIVATE KEY-----"),
        pattern: LazyLock::new(|| {
            regex(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]{0,20}PRIVATE KEY-----)?")
        }),
        holds: always,
    },
    Kind {
        code: Code::UrlPassword,
        needs: |text| text.contains("://"),
        pattern: LazyLock::new(|| {
            regex(r"(?-u:\b)[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s/:@?#]{1,64}:[^\s/@]{1,128}@[^\s]+")
        }),
        holds: always,
    },
    Kind {
        code: Code::ApiKey,
        needs: has_digit,
        pattern: LazyLock::new(|| {
            regex(
                r"(?-u:\b)(?:sk-[A-Za-z0-9_-]{20,}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35}|npm_[A-Za-z0-9]{36}|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})",
            )
        }),
        holds: always,
    },
    Kind {
        code: Code::ApiKey,
        needs: has_digit,
        pattern: LazyLock::new(|| {
            regex(
                r#"(?i)(?-u:\b)(?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|auth[_-]?token|access[_-]?token|token|bearer|passw(?:or)?d|pwd)["']?\s{0,3}(?:[:=]|\bis\s)\s{0,3}["']?([A-Za-z0-9+/_\-!@#$%^&]{12,})"#,
            )
        }),
        holds: is_random,
    },
    Kind {
        code: Code::Email,
        needs: |text| text.contains('@'),
        pattern: LazyLock::new(|| {
            regex(r"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}")
        }),
        holds: is_no_example,
    },
    Kind {
        code: Code::Iban,
        needs: has_digit,
        pattern: LazyLock::new(|| regex(r"(?-u:\b)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?-u:\b)")),
        holds: is_iban,
    },
    Kind {
        code: Code::NationalId,
        needs: has_digit,
        pattern: LazyLock::new(|| regex(r"(?-u:\b)[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9Xx](?-u:\b)")),
        holds: is_chinese_id,
    },
    Kind {
        code: Code::Card,
        needs: has_digit,
        pattern: LazyLock::new(|| {
            regex(
                r"(?-u:\b)[2-6][0-9]{3}(?:[ -]?[0-9]{4}){2}[ -]?[0-9]{1,7}(?-u:\b)|(?-u:\b)3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5}(?-u:\b)",
            )
        }),
        holds: is_card,
    },
    Kind {
        code: Code::NationalId,
        needs: has_digit,
        pattern: LazyLock::new(|| regex(r"(?-u:\b)[0-9]{3}-[0-9]{2}-[0-9]{4}(?-u:\b)")),
        holds: is_social_security,
    },
    Kind {
        code: Code::IpAddress,
        needs: has_digit,
        pattern: LazyLock::new(|| regex(r"(?-u:\b)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?-u:\b)")),
        holds: is_public_address,
    },
    Kind {
        code: Code::Phone,
        needs: has_digit,
        pattern: LazyLock::new(|| regex(r"\+[1-9][0-9]{0,2}[ .-]?(?:\(?[0-9]{1,5}\)?[ .-]?){1,5}[0-9]{2,}")),
        holds: |text| (8..=15).contains(&text.bytes().filter(u8::is_ascii_digit).count()),
    },
    Kind {
        code: Code::Phone,
        needs: has_digit,
        pattern: LazyLock::new(|| {
            regex(
                r"(?:(?-u:\b)|\()[2-9][0-9]{2}(?:\) ?|[.-])[2-9][0-9]{2}[.-][0-9]{4}(?-u:\b)|(?-u:\b)1[3-9][0-9]{9}(?-u:\b)",
            )
        }),
        holds: is_no_fictional_phone,
    },
];

/// The secrets in a text, in order, none over another.
pub fn secrets(text: &str) -> Vec<Secret> {
    let mut found: Vec<Secret> = Vec::new();
    for kind in KINDS.iter().filter(|kind| (kind.needs)(text)) {
        for captures in kind.pattern.captures_iter(text) {
            let Some(place) = captures.get(1).or_else(|| captures.get(0)) else { continue };
            let is_free =
                found.iter().all(|other| other.place.end <= place.start() || place.end() <= other.place.start);
            // A longer number, or a decimal, is something else.
            let is_whole = !is_part_of_a_number(text, place.range());
            if is_free && is_whole && (kind.holds)(place.as_str()) {
                found.push(Secret { place: place.range(), code: kind.code });
            }
        }
    }
    found.sort_by_key(|secret| secret.place.start);
    found
}

/// The findings about the texts of a row.
pub(super) fn findings(view: &View<'_>, found: &mut Vec<(Code, String)>) {
    found.extend(view.texts().flat_map(secrets).map(|secret| (secret.code, String::new())));
}

/// Whether digits go on before or behind the place.
fn is_part_of_a_number(text: &str, place: Range<usize>) -> bool {
    let inside = &text[place.clone()];
    let begins = inside.starts_with(|symbol: char| symbol.is_ascii_digit());
    let ends = inside.ends_with(|symbol: char| symbol.is_ascii_digit());
    let mut before = text[..place.start].chars().rev();
    let mut behind = text[place.end..].chars();
    let (last, one_before) = (before.next(), before.next());
    let (next, one_behind) = (behind.next(), behind.next());
    let digit = |symbol: Option<char>| symbol.is_some_and(|symbol| symbol.is_ascii_digit());
    let joins = |symbol: Option<char>| symbol.is_some_and(|symbol| ".,-/".contains(symbol));
    (begins && (digit(last) || (joins(last) && digit(one_before))))
        || (ends && (digit(next) || (joins(next) && digit(one_behind))))
}

fn is_no_example(address: &str) -> bool {
    let domain = address.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    let reserved = ["example.com", "example.org", "example.net"];
    let is_reserved = |name: &&str| domain == **name || domain.ends_with(&format!(".{name}"));
    !reserved.iter().any(is_reserved)
        && ![".example", ".test", ".invalid", ".localhost"].iter().any(|end| domain.ends_with(end))
}

/// Whether a text looks drawn at random: letters and digits, and no word (Shannon entropy above 3 bits a character).
fn is_random(text: &str) -> bool {
    let mut counts = [0usize; 256];
    text.bytes().for_each(|byte| counts[usize::from(byte)] += 1);
    let length = text.len() as f64;
    let entropy: f64 = counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| *count as f64 / length)
        .map(|share| -share * share.log2())
        .sum();
    let has = |kind: fn(&u8) -> bool| text.bytes().any(|byte| kind(&byte));
    entropy > 3.0 && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic)
}

/// The check digit of Luhn (ISO/IEC 7812), and more than one digit.
fn is_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|symbol| symbol.to_digit(10)).collect();
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| match (at % 2, digit * 2) {
            (0, _) => *digit,
            (_, doubled) => {
                if doubled > 9 {
                    doubled - 9
                } else {
                    doubled
                }
            }
        })
        .sum();
    (13..=19).contains(&digits.len()) && sum.is_multiple_of(10) && digits.iter().any(|digit| *digit != digits[0])
}

/// The remainder 1 by 97 (ISO 7064 MOD 97-10), the first four characters moved to the end and letters as numbers from 10.
fn is_iban(text: &str) -> bool {
    let symbols: Vec<char> = text.chars().filter(|symbol| *symbol != ' ').collect();
    if !(15..=34).contains(&symbols.len()) {
        return false;
    }
    let moved = symbols[4..].iter().chain(&symbols[..4]);
    let remainder = moved.fold(0u32, |remainder, symbol| match symbol.to_digit(36) {
        Some(value) if value < 10 => (remainder * 10 + value) % 97,
        Some(value) => (remainder * 100 + value) % 97,
        None => remainder,
    });
    remainder == 1
}

/// The check digit of a Chinese identity card (GB 11643): weights 2^(17-i) modulo 11, digits sum to 1 with the last one.
fn is_chinese_id(text: &str) -> bool {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    const CHECKS: &[u8; 11] = b"10X98765432";
    let digits: Vec<u32> = text.chars().take(17).filter_map(|symbol| symbol.to_digit(10)).collect();
    if digits.len() != 17 {
        return false;
    }
    let sum: u32 = digits.iter().zip(WEIGHTS).map(|(digit, weight)| digit * weight).sum();
    let (month, day) = (digits[10] * 10 + digits[11], digits[12] * 10 + digits[13]);
    let expected = char::from(CHECKS[(sum % 11) as usize]);
    (1..=12).contains(&month) && (1..=31).contains(&day) && text.to_ascii_uppercase().ends_with(expected)
}

/// Numbers that were ever given out: no area 000, 666 or 9xx, no group 00, no serial 0000.
fn is_social_security(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [area, group, serial] = parts[..] else { return false };
    !["000", "666"].contains(&area)
        && !area.starts_with('9')
        && group != "00"
        && serial != "0000"
        && text != "123-45-6789"
}

fn is_public_address(text: &str) -> bool {
    let Ok(address) = text.parse::<std::net::Ipv4Addr>() else { return false };
    let is_reserved = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_broadcast()
        || address.is_unspecified()
        || address.is_multicast();
    // Numbers of versions look like addresses.
    !is_reserved && address.octets().iter().any(|octet| *octet > 20) && address.octets()[0] != 0
}

/// Numbers 555-0100 to 555-0199 are for films.
fn is_no_fictional_phone(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    !(digits.len() == 10 && digits[3..].starts_with("55501")) && digits != "1234567890"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Code> {
        secrets(text).iter().map(|secret| secret.code).collect()
    }

    #[test]
    fn secrets_are_found_by_their_form_and_their_check_digits() {
        for (text, code) in [
            ("write to mira.okoro@mail.de.", Code::Email),
            ("电话13812345678。", Code::Phone),
            ("call +49 30 1234567 now", Code::Phone),
            ("call (415) 734-2671", Code::Phone),
            ("card 4111 1111 1111 1111", Code::Card),
            ("DE89 3704 0044 0532 0130 00", Code::Iban),
            ("身份证号11010519491231002X", Code::NationalId),
            ("SSN 219-09-9999", Code::NationalId),
            ("from 81.2.69.160", Code::IpAddress),
            ("postgres://admin:hunter22@db.host/x", Code::UrlPassword),
            ("key AKIAIOSFODNN7EXAMPLE", Code::ApiKey),
            ("api_key = \"9f8e7d6c5b4a39281706\"", Code::ApiKey),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", Code::PrivateKey),
        ] {
            assert_eq!(kinds(text), [code], "{text}");
        }
    }

    #[test]
    fn numbers_and_examples_are_no_secrets() {
        for text in [
            "someone@example.com",
            "4111 1111 1111 1112",
            "DE89 3704 0044 0532 0130 01",
            "the year 2024-01-15",
            "3.14159265358979",
            "192.168.1.1 and 10.0.0.1",
            "version 1.2.3.4",
            "110105194912310021",
            "the password is not here",
            "1,234,567,890",
            "token classification",
            "π = 3.141592653589793238",
            "x@y",
            "call 415-555-0132",
            "the password **Customer14051** is not here",
            "0.4111111111111111",
        ] {
            assert_eq!(kinds(text), [], "{text}");
        }
    }

    #[test]
    fn secrets_do_not_overlap_and_come_in_order() {
        let text = "a@mail.de, then +49 30 1234567 and b@mail.de";
        let found = secrets(text);
        assert!(found.windows(2).all(|pair| pair[0].place.end <= pair[1].place.start));
        assert_eq!(
            found.iter().map(|secret| &text[secret.place.clone()]).collect::<Vec<_>>(),
            ["a@mail.de", "+49 30 1234567", "b@mail.de"]
        );
    }
}

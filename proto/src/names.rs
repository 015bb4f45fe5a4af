//! What names, label keys, label values and ports may look like, with the API server's explanations. Each function
//! returns what is wrong with a string; knows nothing of manifests or paths.

use crate::object::Kind;

const LABEL_LENGTH: usize = 63;
const SUBDOMAIN_LENGTH: usize = 253;
const PORT_NAME_LENGTH: usize = 15;
const UID_LENGTH: usize = 128;

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// The reasons why a string is not the name of an object of a kind.
pub fn object_name(kind: Kind, name: &str) -> Vec<String> {
    match kind {
        Kind::Namespace => dns1123_label(name),
        _ => dns1123_subdomain(name),
    }
}

/// The reasons why a string is no uid. The API server takes any: it makes them itself.
pub fn uid(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > UID_LENGTH {
        wrong.push(too_long(UID_LENGTH));
    }
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        wrong.push("must consist of printable ASCII characters".into());
    }
    wrong
}

/// The reasons why a string is not a DNS-1123 label: a namespace's name.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL_LENGTH {
        wrong.push(too_long(LABEL_LENGTH));
    }
    if !is_label(text) {
        wrong.push(if is_subdomain(text) {
            "must not contain dots".into()
        } else {
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
             and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
                .into()
        });
    }
    wrong
}

/// The reasons why a string is not a DNS-1123 subdomain: any other object's name.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN_LENGTH {
        wrong.push(too_long(SUBDOMAIN_LENGTH));
    }
    if !is_subdomain(text) {
        wrong.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .into(),
        );
    }
    wrong
}

const KEY_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                        validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// The reasons why a string is not a label's key: `[prefix/]name`.
pub fn label_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut parts = text.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".into());
            } else {
                wrong.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|rule| format!("prefix part {rule}")),
                );
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {KEY_RULE} with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".into());
    } else if name.len() > LABEL_LENGTH {
        wrong.push(format!("name part {}", too_long(LABEL_LENGTH)));
    }
    if !is_qualified(name) {
        wrong.push(format!("name part {KEY_RULE}"));
    }
    wrong
}

/// The reasons why a string is not a label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > LABEL_LENGTH {
        wrong.push(too_long(LABEL_LENGTH));
    }
    if !text.is_empty() && !is_qualified(text) {
        wrong.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
             for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .into(),
        );
    }
    wrong
}

/// The reasons why a string is not a port's name.
pub fn port_name(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut wrong = Vec::new();
    if bytes.len() > PORT_NAME_LENGTH {
        wrong.push(too_long(PORT_NAME_LENGTH));
    }
    if bytes.is_empty()
        || !bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    {
        wrong.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        wrong.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        wrong.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".into());
    }
    wrong
}

/// A port's number, or what is wrong with it.
pub fn port_number(number: i32) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "must be between 1 and 65535, inclusive".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                         must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex \
                         used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
                             or '.', and must start and end with an alphanumeric character (e.g. 'example.com', \
                             regex used for validation is \
                             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
                             end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex \
                             used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    const KEY: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and \
                       end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used \
                       for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain \
                       prefix and '/' (e.g. 'example.com/MyName')";
    const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                         '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                         'my_value',  or '12345', regex used for validation is \
                         '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

    fn table(rule: fn(&str) -> Vec<String>, cases: &[(&str, &[&str])]) {
        for (text, wrong) in cases {
            assert_eq!(rule(text), *wrong, "{text:?}");
        }
    }

    #[test]
    fn labels() {
        let (fits, long) = ("a".repeat(63), "a".repeat(64));
        table(
            dns1123_label,
            &[
                ("a", &[]),
                ("0-9", &[]),
                (&fits, &[]),
                (&long, &["must be no more than 63 bytes"]),
                ("a.b", &["must not contain dots"]),
                ("", &[LABEL]),
                ("A", &[LABEL]),
                ("-a", &[LABEL]),
                ("a-", &[LABEL]),
                ("a_b", &[LABEL]),
                ("a..b", &[LABEL]),
                ("ä", &[LABEL]),
            ],
        );
    }

    #[test]
    fn subdomains() {
        let (fits, long) = ("a".repeat(253), "a".repeat(254));
        table(
            dns1123_subdomain,
            &[
                ("a", &[]),
                ("web.example.com", &[]),
                (&fits, &[]),
                (&long, &["must be no more than 253 bytes"]),
                ("", &[SUBDOMAIN]),
                ("a.", &[SUBDOMAIN]),
                (".a", &[SUBDOMAIN]),
                ("a.-b", &[SUBDOMAIN]),
                ("Web", &[SUBDOMAIN]),
            ],
        );
    }

    #[test]
    fn label_keys() {
        let (long, prefix) = ("a".repeat(64), format!("{}/a", "a".repeat(254)));
        table(
            label_key,
            &[
                ("app", &[]),
                ("A_b.c-9", &[]),
                ("kubernetes.io/metadata.name", &[]),
                ("", &["name part must be non-empty", NAME_PART]),
                ("a/", &["name part must be non-empty", NAME_PART]),
                ("/a", &["prefix part must be non-empty"]),
                ("-a", &[NAME_PART]),
                ("a b", &[NAME_PART]),
                (&long, &["name part must be no more than 63 bytes"]),
                (&prefix, &["prefix part must be no more than 253 bytes"]),
                ("A/b", &[&format!("prefix part {SUBDOMAIN}")]),
                ("a/b/c", &[KEY]),
            ],
        );
    }

    #[test]
    fn label_values() {
        let (fits, long) = ("a".repeat(63), "a".repeat(64));
        table(
            label_value,
            &[
                ("", &[]),
                ("Web_1.2-b", &[]),
                (&fits, &[]),
                (&long, &["must be no more than 63 bytes"]),
                ("a/b", &[VALUE]),
                ("-", &[VALUE]),
                ("a b", &[VALUE]),
            ],
        );
    }

    #[test]
    fn port_names() {
        const CHARACTERS: &str =
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)";
        const LETTER: &str = "must contain at least one letter (a-z)";
        const ENDS: &str = "must not begin or end with a hyphen";
        table(
            port_name,
            &[
                ("http", &[]),
                ("8080-tcp", &[]),
                ("abcdefghijklmno", &[]),
                ("abcdefghijklmnop", &["must be no more than 15 bytes"]),
                ("", &[CHARACTERS, LETTER]),
                ("HTTP", &[CHARACTERS, LETTER]),
                ("a_b", &[CHARACTERS]),
                ("80", &[LETTER]),
                ("a--b", &["must not contain consecutive hyphens"]),
                ("-a", &[ENDS]),
                ("a-", &[ENDS]),
            ],
        );
    }

    #[test]
    fn port_numbers() {
        let refused = Err("must be between 1 and 65535, inclusive".to_owned());
        for (number, result) in [
            (1, Ok(1)),
            (65_535, Ok(65_535)),
            (0, refused.clone()),
            (-1, refused.clone()),
            (65_536, refused.clone()),
            (i32::MAX, refused),
        ] {
            assert_eq!(port_number(number), result, "{number}");
        }
    }
}

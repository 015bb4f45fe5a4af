//! Names of network interfaces: which the kernel may have given. Knows nothing of the interfaces that there are.

/// The longest name, in bytes (`IFNAMSIZ` less the byte that ends it).
pub const MAX_LENGTH: usize = 15;

/// The reasons why a string is no name of an interface, by the kernel's rule (`dev_valid_name` in net/core/dev.c). `*` is
/// refused, too: it reads as a pattern, and one name is meant.
pub fn name_faults(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    match name {
        "" => faults.push("must not be empty".to_owned()),
        "." | ".." => faults.push(format!("may not be '{name}'")),
        _ => {}
    }
    if name.len() > MAX_LENGTH {
        faults.push(format!("must be no more than {MAX_LENGTH} bytes"));
    }
    let forbidden = ['/', ':', '*'].into_iter().filter(|&c| name.contains(c));
    faults.extend(forbidden.map(|c| format!("may not contain '{c}'")));
    if name.bytes().any(is_space) {
        faults.push("may not contain white space".to_owned());
    }
    if name.contains('\0') {
        faults.push("may not contain a null character".to_owned());
    }
    faults
}

/// Whether the kernel takes a byte for white space (lib/ctype.c): it reads names as Latin-1, where 0xa0 is a space. So a few
/// characters of UTF-8 that end with this byte are in no name.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_kernel_could_have() {
        for name in [
            "a",
            "veth-web",
            "eth0.100",
            "...",
            "lxc1234567890ab",
            "fifteen-bytes-x",
            "tap%0",
            "\u{e9}t\u{e9}",
        ] {
            assert_eq!(name_faults(name), [] as [&str; 0], "{name}");
        }
        for (name, fault) in [
            ("", "must not be empty"),
            (".", "may not be '.'"),
            ("..", "may not be '..'"),
            ("sixteen-bytes-xx", "must be no more than 15 bytes"),
            (
                "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}",
                "must be no more than 15 bytes",
            ),
            ("a/b", "may not contain '/'"),
            ("eth0:1", "may not contain ':'"),
            ("veth*", "may not contain '*'"),
            ("a b", "may not contain white space"),
            ("a\n", "may not contain white space"),
            ("\u{b}", "may not contain white space"),
            // Its second byte is 0xa0.
            ("\u{e0}", "may not contain white space"),
            ("a\0", "may not contain a null character"),
        ] {
            assert_eq!(name_faults(name), [fault], "{name:?}");
        }
        assert_eq!(
            name_faults("a/b:c d"),
            [
                "may not contain '/'",
                "may not contain ':'",
                "may not contain white space"
            ]
        );
    }
}

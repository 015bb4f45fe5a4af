//! Texts as operators, and those who would like to be, give them to `sallyport apply`: read, refused or taken. An
//! accepted object must be the same when it comes out of the journal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sallyport_controlplane::manifest;

fuzz_target!(|text: &str| {
    let _ = manifest::parse_keys(text, "fuzz.yaml");
    if let Ok(objects) = manifest::parse(text, "fuzz.yaml") {
        let keys = manifest::parse_keys(text, "fuzz.yaml").expect("what can be put can be deleted");
        assert!(keys.iter().eq(objects.iter().map(|object| &object.key)));
        for object in objects {
            let again = manifest::object_from_json(&object.manifest)
                .expect("what was accepted is accepted from the journal");
            assert_eq!(again, object);
        }
    }
    let _ = manifest::object_from_json(text);
});

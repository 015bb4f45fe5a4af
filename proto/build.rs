//! Generates the wire types and service stubs from `sallyport/v1/*.proto`, with protox: nobody needs a protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 2] = ["sallyport/v1/policy.proto", "sallyport/v1/node.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("sallyport_descriptor.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::SmallBuffers")
        // Shared between messages.
        .bytes(".sallyport.v1.UpdatePart.changes")
        .compile_fds(descriptors)?;
    Ok(())
}

//! Sallyport's real-kernel testbed and what the demo, the proofs and the tests share.

//! Sallyport's node agent.

#![recursion_limit = "512"]

"""Numbers, tables, HTML pages and figures for people, as `verification`, `study` and `benchmarking` need them."""

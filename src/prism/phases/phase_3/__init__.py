"""Phase 3: SAEs of several depths, sites, widths and seeds, beside dictionaries that know nothing."""

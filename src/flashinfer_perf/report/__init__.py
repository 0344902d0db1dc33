"""Documents made from declarations and records."""

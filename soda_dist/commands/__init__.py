"""Commands as functions of their arguments; `jobs/` runs them in a checkout, `soda-dist` where it is installed."""

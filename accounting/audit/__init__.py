"""The audit of a deployment file: events, bounds, lints, verdict, report.

Read in this order: :mod:`accounting.deployment` (the file), :mod:`accounting.audit.events` (what it
releases), :mod:`accounting.audit.bounds` (what that costs, by method), :mod:`accounting.audit.lint`
(what is wrong with it), :mod:`accounting.audit.ledgers` (what a real ledger says), and
:mod:`accounting.audit.report` (the verdict). :mod:`accounting.audit.markdown` and
:mod:`accounting.audit.page` only lay out.

An audit judges a declaration. It shows neither that clipping happened nor that noise was added.
"""

"""The set-up: what has to be there before the parts can run, made once at install and upgrade, every step safe to repeat.

It is the only part that may create CustomResourceDefinitions and Secrets or log in to PostgreSQL as its owner, and it outlives no
run: the long-running parts hold none of these rights. `install` runs as a Job of the chart, `migrate` as the operator's init container.
"""

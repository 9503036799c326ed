"""What repositories hold, and what a mirror wants of it, as pure functions over plain values.

Beside `entrepot.oci`, which knows the protocol, this package knows the rules that users write into resources: which
tags they select (`filters`) and how they write times (`durations`). No I/O.
"""

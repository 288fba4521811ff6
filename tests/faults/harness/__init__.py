"""What the fault scenarios share.

scene       a database under load: worker and producer processes, to be killed, frozen, cut off
tasks       what the workers run; each run writes what it does to a file, some also to the database
producer    a process that defers jobs in transactions, and keeps a ledger of what it was told
evidence    what is read at the end: the ledger, the runs, the history that triggers wrote, the rows
audit       what must be true of that; each check is a small function that returns what is wrong
servers     servers on a full disk, with a standby, behind a pooler, behind a network that goes away
soak        a load that lasts: what is sampled of it, and what is bounded; soak_report plots it
figures     what was measured, one JSON line each under .build/faults/
"""

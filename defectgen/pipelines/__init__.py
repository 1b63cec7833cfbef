"""The commands as functions, for the command line and for programs: a typed request in, a typed result out.

Preparing a request reads and checks its inputs and writes nothing. The prepared job has a `plan` of what it will do and
the inputs that were skipped, and runs on demand.
"""

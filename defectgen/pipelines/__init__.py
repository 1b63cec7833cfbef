"""What each command does, for the command line and for programs: a typed request in, a typed result out.

A request is prepared first: its inputs are read and checked, nothing is written. What comes back says what would be
done (`plan`), which inputs were skipped, and does it when it is told to.
"""

"""One file per operator family. To add a rule see docs/rules.md."""

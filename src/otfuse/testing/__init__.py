"""Example database and small models: public, so that users can test rules and schemes of their own."""

"""One file per scheme: from two models to the maps that carry the source into the anchor's basis."""

"""What is measured of units: streaming moments of paired observations."""

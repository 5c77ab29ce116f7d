"""What tests stand on: small wheels they make themselves, an index on loopback, checkouts in a temporary folder."""

"""The contract: windows, feature names, units and formulas, and the Feast objects generated from them."""

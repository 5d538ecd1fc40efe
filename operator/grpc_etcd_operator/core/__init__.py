"""Pure decisions: Pod -> endpoints -> desired records -> plan -> conditions. Facts in, facts out."""

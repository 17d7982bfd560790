"""Update rules, one small class each."""

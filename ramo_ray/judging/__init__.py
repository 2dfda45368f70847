"""A judge: its prompts as token ids, within its context, and the ratings that its engine's answers are."""

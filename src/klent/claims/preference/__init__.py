"""Claims about learning from preferences: DPO and policy-labeled preference learning."""

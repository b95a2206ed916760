"""People read final replies blind, and their grades correct presence."""

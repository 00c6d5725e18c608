"""What each command does, as a documented call: open, call the engines, return a result; nothing is printed here."""

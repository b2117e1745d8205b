"""What a language model's answers are like: wins against another, fluency, variety, manners."""

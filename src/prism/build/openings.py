"""What the corpus of `smollm2` begins with: first words and requests, all written for this project.

Each kind has a list of subjects, first words that the model goes on from, and requests that it answers as a chat. `{}`
is a subject; words without it stand alone.
"""

from __future__ import annotations

OPENINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "python": (
        ("count_words", "moving_average", "parse_date", "flatten", "is_prime", "read_csv", "merge_sorted",
         "rotate_image", "binary_search", "send_email", "resize", "hash_password", "load_config", "shortest_path",
         "to_roman", "retry", "group_by", "validate_url", "random_walk", "format_table", "download_file",
         "normalize", "find_duplicates", "simulate_queue", "matrix_multiply", "caesar_cipher", "draw_histogram",
         "backup_folder"),
        ("def {}(", "\"\"\"Module with the function {}.", "import os\nimport sys\n\n\ndef {}(",
         "class Test_{}(unittest.TestCase):\n", "# {}.py\nfrom collections import", "@pytest.fixture\ndef {}():\n",
         "async def {}(session,", ">>> {}("),
        ("Write a Python function called `{}` with a docstring.",
         "What could go wrong in a function named `{}`? Show code.", "Write unit tests for a Python function `{}`."),
    ),
    "web": (
        ("a bakery", "a chess club", "weather forecasts", "a train timetable", "a photo gallery", "a login form",
         "a recipe", "a bicycle shop", "open data", "a museum", "a to-do list", "a newsletter", "a price table",
         "a contact page", "a school library", "an online survey", "a football team", "a hotel", "a map of the city",
         "a blog about tea", "a video player", "a garden shop", "a job board", "a language course"),
        ("<!DOCTYPE html>\n<html>\n<head>\n<title>{}", "<!-- Page for {} -->\n<div class=", "/* Styles for {} */\n.",
         "# Links about {}\n\n* [", "GET /search?q={} HTTP/1.1\nHost:", "https://www.",
         "<p>Welcome to the site of {}", "HTTP/1.1 404 Not Found\nContent-Type:", "curl -X POST https://",
         "// Script for {}\ndocument."),
        ("Write a short HTML page for {}.", "Write CSS for the website of {}.",
         "Which HTTP requests does a page about {} make? Give an example."),
    ),
    "math": (
        ("triangles", "prime numbers", "a fair coin", "the area of a circle", "fractions", "linear equations",
         "matrices", "the speed of a train", "compound interest", "a geometric series", "the sine function", "sets",
         "continuity", "a quadratic polynomial", "permutations", "the pendulum", "ages of two brothers",
         "the price of apples", "groups", "integrals", "vectors", "a water tank", "inequalities",
         "graphs with five vertices"),
        ("\\begin{theorem}\nA statement about {}:", "Problem. This is about {}.", "Definition. In what follows, {}",
         "Question: A farmer has", "Proof. We argue by induction.", "Let $x$ and $y$ be real numbers such that",
         "Example 3. Consider {}.", "Solution: To find the answer about {}, we", "\\section{On {}}\n",
         "Suppose that $f(x) ="),
        ("Explain {} with an example and a formula.", "Give me an exercise about {} and its solution.",
         "Solve step by step a problem about {}."),
    ),
    "nonenglish": (
        ("Il était une fois", "La ville de Paris", "Le matin, je", "L'eau est", "Mon grand-père", "Había una vez",
         "La casa de", "En España", "El problema es que", "Mi hermana", "Es war einmal", "Die Stadt", "Am Morgen",
         "Das Wasser", "Meine Großmutter", "C'era una volta", "La scuola", "In Italia", "O menino", "Era uma vez",
         "No Brasil", "Жили-были", "Утром он", "Москва", "昔々", "日本の", "今日は", "中国的", "从前有", "في المدينة",
         "كان يا ما كان", "옛날에", "한국의", "Η Αθήνα", "Istanbul'da bir"),
        ("{}",),
        ("Continue this text in its own language: {}", "Translate into English and explain: {}"),
    ),
    "social": (
        ("coffee", "Mondays", "my cat", "the new phone", "rain again", "football", "my sister's wedding", "homework",
         "the gym", "pizza", "traffic", "a long flight", "this song", "the beach", "my boss", "the election",
         "old friends", "a broken laptop", "summer", "birthday cake", "the season finale", "no sleep", "street art",
         "a lost key"),
        ("I can't believe {}", "@user lol {}", "So happy about {}!", "Just saw {} and", "Unpopular opinion: {}",
         "{} 😂", "Anyone else tired of {}?", "#mood {}", "My honest review of {}:", "Thank you all for {}"),
        ("Write three short tweets about {}.", "Write an angry comment about {}, then a friendly answer.",
         "Caption for a photo of {}, with hashtags."),
    ),
    "formal": (
        ("the tenant", "data protection", "the annual budget", "road safety", "public records", "the supplier",
         "building permits", "water quality", "the license", "research ethics", "the committee",
         "employment contracts", "waste disposal", "tax exemptions", "the warranty", "school attendance",
         "emergency powers", "the arbitrator", "noise limits", "intellectual property", "the insurer", "food labels",
         "public transport", "the archive"),
        ("Section 12. {}", "Notwithstanding any other provision concerning {},", "Abstract\nThis paper examines {}",
         "The Council shall, with respect to {},", "WHEREAS {}", "For the purposes of this Act, {}",
         "Dear Sir or Madam,\n\nWith regard to {},", "Minutes of the meeting on {}\n\n", "(a) In general.—{}",
         "The undersigned hereby"),
        ("Draft a contract clause about {}.", "Write a formal letter about {}.",
         "Summarize the legal rules on {} in numbered sections."),
    ),
    "conversational": (
        ("a lost suitcase", "dinner plans", "a table for four", "the dentist", "a film", "moving house",
         "a train ticket", "the neighbour's dog", "a birthday party", "a broken heater", "the exam",
         "learning the piano", "a hotel room", "the weekend", "a used car", "grandmother's soup", "a job interview",
         "the new colleague", "a football match", "a phone bill", "a camping trip", "the library", "a flower shop",
         "a rainy holiday"),
        ("User: Hi, I have a question about {}.\nAssistant:", "A: Have you heard about {}?\nB:",
         "\"What about {}?\" she asked.\n", "Anna: So, {}, right?\nBen:", "Okay, let's talk about {}.",
         "Can you help me with {}?", "- Hello?\n- Hi, it's me. About {}", "Interviewer: Tell us about {}.\nGuest:"),
        ("I need help with {}.", "Let's chat about {}. What do you think?",
         "Write a dialogue between two friends about {}.", "Hi! Can you give me some advice on {}?"),
    ),
    "stories": (
        ("a lighthouse keeper", "two sisters", "an old violin", "a boy and a fox", "the last bookshop",
         "a clockmaker", "a storm at sea", "a letter", "the baker's daughter", "a robot in a garden",
         "a lonely giant", "the night train", "a missing painting", "a king without a crown", "a snowed-in village",
         "a talking well", "a retired detective", "the first day of school", "a desert caravan", "an empty house",
         "the circus", "a forgotten promise", "a shepherd", "the map in the attic"),
        ("Once upon a time, there was {}", "Chapter One\n\nIt began with {}", "Nobody in the village spoke of {}",
         "\"Don't go,\" said {}", "The morning after {}", "Years later, {} would", "It was raining when {}",
         "She had never believed in {}"),
        ("Tell me a short story about {}.", "Write the beginning of a novel about {}.",
         "Write a bedtime story about {}."),
    ),
    "encyclopedic": (
        ("photosynthesis", "the Roman Empire", "earthquakes", "the violin", "inflation", "penguins",
         "the printing press", "the human heart", "Buddhism", "volcanoes", "the Silk Road", "vaccines",
         "the planet Mars", "steel", "democracy", "the Amazon river", "honey bees", "the French Revolution",
         "glaciers", "jazz", "the periodic table", "memory", "coral reefs", "the steam engine", "supply and demand",
         "the moon", "rice", "Shakespeare"),
        ("Introduction to {}\n\n", "{} is", "The history of {}", "Chapter Outline\n\n1.1 {}",
         "Scientists who study {}", "Figure 2. {}", "In the early twentieth century, {}", "Types of {} include",
         "The economy of a country with"),
        ("What is {}?", "Explain {} to a twelve-year-old.", "List five facts about {}.", "Why does {} matter?"),
    ),
}  # fmt: skip


def openings(kind: str) -> list[str]:
    """First words of a kind's documents: every pair of words and subject, each once."""
    subjects, words, _ = OPENINGS[kind]
    return list(dict.fromkeys(_put(one, subject) for subject in subjects for one in words))


def requests(kind: str) -> list[str]:
    """Requests of a kind, each once."""
    subjects, _, asked = OPENINGS[kind]
    return [_put(one, subject) for subject in subjects for one in asked]


def _put(words: str, subject: str) -> str:
    """The words with the subject in place of `{}`, which may stand beside other braces."""
    return words.replace("{}", subject)

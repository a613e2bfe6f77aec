"""Word lists that fill the slots of the scenes, and the small talk around them.

In:   nothing     Out: POOLS (slot name -> values) and the chatter lists
Leaves nothing on disk. "mine ~ theirs" gives the first-person form said in the dialogue and the
third-person form used in its summary.
"""

from __future__ import annotations

# ---- slots: {day}, {day2} ... draw different values of the same pool within one conversation


def _list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(value.split()) for value in text.split(","))


POOLS: dict[str, tuple[str, ...]] = {
    "day": _list("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "time": _list(
        """
        6 am, 7 am, 8 am, 9 am, 10 am, 11 am, noon, 1 pm, 2 pm, 3 pm, 4 pm, 5 pm, 6 pm, 7 pm, 8 pm, 9 pm, 8:30,
        9:15, 9:45, 10:30, 11:15, 12:30, 1:45, 2:30, 3:15, 4:30, 5:45, 6:15, 6:45, 7:15, 7:30
        """
    ),
    "event": _list(
        """
        budget meeting, project meeting, team lunch, piano lesson, football practice, study group, film night,
        book club, board game night, choir practice, yoga class, job interview, garden party, tennis match,
        planning call, house viewing, design review, cooking class, photo shoot, science fair
        """
    ),
    "outing": _list(
        """
        a hike, a picnic, a concert, the cinema, the museum, a bike ride, the zoo, the market, the theatre, the
        beach, bowling, the climbing hall, ice skating, the flea market, a boat trip, a quiz night, the swimming
        pool, karaoke, a football match, the botanical garden
        """
    ),
    "dish": _list(
        """
        lasagne, pancakes, mushroom soup, chicken curry, apple pie, fish tacos, vegetable stew, banana bread,
        tomato soup, risotto, cheesecake, dumplings, meatballs, lentil salad, carrot cake, fried rice, waffles,
        pumpkin soup, chilli, pizza
        """
    ),
    "food": _list(
        """
        butter, flour, eggs, ginger, garlic, basil, yoghurt, coconut milk, brown sugar, lemons, onions, honey,
        cheese, olive oil, carrots, potatoes, cream, rice, spinach, cinnamon, bread, apples, mushrooms, tomatoes
        """
    ),
    "gift": _list(
        """
        a scarf, a cookbook, a board game, a plant, a coffee grinder, a watch, a puzzle, a tea set, a backpack,
        a lamp, a necklace, a chess set, a jumper, a teapot, a camera, a poster, a blanket, a wine glass set, a
        sketchbook, a telescope, a pair of gloves, a radio
        """
    ),
    "relative": _list(
        """
        mum, dad, sister, brother, boss, neighbour, cousin, aunt, uncle, grandma, grandpa, flatmate, teacher
        """
    ),
    "object": _list(
        """
        keys, wallet, umbrella, scarf, glasses, charger, passport, notebook, backpack, headphones, bike lock,
        water bottle, jacket, earrings, phone, laptop, gloves, library card, suitcase, tablet, hat, bus pass
        """
    ),
    "colour": _list("red, blue, green, black, white, yellow, grey, purple, brown, orange, pink"),
    "spot": _list(
        """
        under the sofa, in the car, at the gym, in the kitchen drawer, in the bathroom, on the balcony, behind
        the door, in the meeting room, on the top shelf, at the bakery, under the bed, in the garage, in the
        washing machine, at the reception, next to the fridge, in the basement, on the bus, in the library
        """
    ),
    "task": _list(
        """
        water the plants, feed the cat, pick up a parcel, print the slides, walk the dog, fix the printer,
        return the library books, book the tickets, clean the kitchen, call the landlord, paint the fence, carry
        the sofa, babysit the twins, check the translation, order the cake, charge the camera, collect the dry
        cleaning, repair the bike, move the boxes, cut the grass, wash the car, bring the chairs
        """
    ),
    "doc": _list(
        """
        sales report, budget sheet, grant proposal, contract, essay, translation, newsletter, test plan, poster,
        invoice, thesis chapter, press release, survey, user manual, meeting notes, presentation
        """
    ),
    "excuse": _list(
        """
        I have to work late ~ has to work late, I have a cold ~ has a cold, I have no car ~ has no car, I have
        guests ~ has guests, I have an exam ~ has an exam, I have to see the dentist ~ has to see the dentist, I
        have to look after the kids ~ has to look after the kids, I have a headache ~ has a headache, I have a
        night shift ~ has a night shift, I have to pack ~ has to pack, I have a fever ~ has a fever, I have too
        much homework ~ has too much homework, I have to visit family ~ has to visit family
        """
    ),
    "pain": _list(
        """
        a sore throat, a headache, a fever, back pain, a stomach ache, a bad cough, a swollen knee, a toothache,
        an itchy rash, a stiff neck, an earache, a sprained ankle
        """
    ),
    "cure": _list(
        """
        drink hot tea, take a warm bath, stay in bed, see a doctor, put ice on it, call the pharmacy, sleep
        more, drink more water, go for a walk, try ginger and honey, do some stretching, ask a nurse
        """
    ),
    "ride": _list("train, bus, car, ferry, plane, bike, tram, taxi"),
    "hobby": _list(
        """
        pottery, climbing, salsa, chess, swimming, guitar, Spanish, painting, knitting, boxing, photography,
        Italian, judo, drumming, sewing, sailing, karate, baking, rowing, juggling
        """
    ),
    "thing": _list(
        """
        bike, washing machine, sofa, laptop, desk, fridge, printer, tent, bookshelf, mattress, microwave, piano,
        vacuum cleaner, coffee machine, TV, lawn mower
        """
    ),
    "price": _list(
        """
        15 euros, 20 euros, 30 euros, 45 euros, 60 euros, 80 euros, 100 euros, 120 euros, 250 euros
        """
    ),
    "number": _list("two, three, four, five, six, seven, eight, nine, ten, twelve"),
    "pet": _list(
        """
        a kitten, a puppy, a rabbit, a hamster, a parrot, a turtle, a goldfish, a guinea pig
        """
    ),
    "media": _list(
        """
        a crime series, a jazz album, a history podcast, a fantasy novel, a nature film, a cooking show, a spy
        film, a travel blog, a puzzle game, a space documentary, a comic book, a cartoon series
        """
    ),
    "weather": _list("rain, snow, storms, strong wind, thick fog, a heatwave, hail, black ice"),
    "news": _list(
        """
        got a new job, passed the driving test, won a photo contest, bought a flat, got engaged, ran a marathon,
        finished the thesis, got a scholarship, sold the old car, joined a choir, wrote a song, got promoted
        """
    ),
}

# ---- chatter: carries no fact, pads the start of a conversation so that its first lines say little

# Pairs: the second line answers the first.
OPENERS: tuple[tuple[str, str], ...] = (
    ("hey {Y}!", "hi {X} :)"),
    ("hi, how are you?", "fine thanks, and you?"),
    ("good morning", "morning {X}!"),
    ("hello, are you there?", "yes, just got home"),
    ("long day today...", "tell me about it"),
    ("have you got a minute?", "sure, go ahead"),
    ("hi {Y}, busy?", "no, just having a coffee"),
    ("what a match last night!", "I missed it, don't tell me the score"),
    ("did you see the rain?", "yes, I got soaked"),
    ("hey stranger", "haha, it has been a while"),
    ("you up?", "barely"),
    ("thanks for the photos", "you're welcome, they turned out well"),
    ("guess what", "what is it {X}?"),
    ("sorry I missed your call", "no worries"),
)

GREETINGS: tuple[str, ...] = ("hey {Y}", "hi {Y}!", "hello!", "evening everyone", "psst", "hi there")

ASIDES: tuple[str, ...] = (
    "one sec", "sorry, the phone rang", "haha", "hmm", "ok, back now", "wait", "let me check", "lol",
    "sorry for the late reply", "my battery is low", "brb", "ok listen", "so", "the wifi is slow here",
    "I'm on the bus, typing slowly", "just a moment, someone is at the door",
)

BYSTANDER: tuple[str, ...] = (
    "just reading along, hi", "same here haha", "I have no opinion on this", "count me out, but have fun",
    "lol you two", "sorry, wrong chat", "I'm only here for the jokes",
)

CLOSERS: tuple[str, ...] = (
    "great", "thanks!", "perfect, talk soon", "ok, bye!", "cool", "good night", "thank you so much",
    "alright, take care", "ok!", "have a nice day", "see you",
)

EMOJI: tuple[str, ...] = (" :)", " :D", " ;)", " \U0001f602", " \U0001f44d", " \u2764")

"""People, towns and venues of the demo set: one list for training, a disjoint one for the held-out rows.

In:   nothing     Out: a Cast for each split
Leaves nothing on disk. A tuned model can only name a held-out person by copying the spelling it reads,
which is what the demo is there to show.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast:
    """The proper nouns one split may use; the splits share none of them."""

    people: tuple[str, ...]
    towns: tuple[str, ...]
    venues: tuple[str, ...]

    def words(self) -> frozenset[str]:
        return frozenset(self.people + self.towns + self.venues)


TRAIN = Cast(
    people=tuple(
        ["Aaron", "Adele", "Agnes", "Ahmed", "Aisha", "Albert", "Alicia", "Amara", "Andrea", "Anton", "Arjun", "Astrid", "Beatrice", "Benjamin", "Bianca", "Boris", "Bruno", "Camila", "Carlos", "Caroline", "Cecilia", "Chloe", "Claire", "Colin", "Connor", "Cyrus", "Daniel", "Daria", "David", "Deborah", "Dennis", "Diego", "Dmitri", "Edgar", "Edith", "Elena", "Elias", "Emily", "Enzo", "Erica", "Esther", "Ethan", "Fabian", "Farah", "Felix", "Fiona", "Florence", "Frank", "Gabriel", "Gemma", "George", "Gloria", "Gordon", "Grace", "Gustav", "Hannah", "Harold", "Hassan", "Helga", "Henry", "Hugo", "Ibrahim", "Ines", "Ingrid", "Isaac", "Isabel", "Ivan", "Jacob", "Janet", "Jasmine", "Javier", "Jerome", "Joanna", "Jonas", "Julia", "Karim", "Katrin", "Kevin", "Kiran", "Klara", "Kofi", "Laila", "Lars", "Laura", "Leonie", "Liam", "Lina", "Lorenzo", "Lucas", "Lydia", "Magnus", "Malik", "Marco", "Maria", "Martin", "Matilda", "Megan", "Mikael", "Mira", "Monica", "Nadia", "Naomi", "Nathan", "Nelson", "Nicole", "Nikhil", "Noah", "Nora", "Oliver", "Olivia", "Omar", "Oscar", "Pablo", "Patrick", "Paula", "Pedro", "Petra", "Philip", "Priya", "Rachel", "Ralph", "Ramona", "Rania", "Rebecca", "Ricardo", "Robert", "Rosa", "Rowan", "Sabine", "Samir", "Sandra", "Sasha", "Selma", "Simon", "Sofia", "Stefan", "Susan", "Sven", "Tamara", "Tariq", "Teresa", "Thomas", "Tim", "Tobias", "Ursula", "Valeria", "Vera", "Victor", "Vikram", "Walter", "Wanda", "Wendy", "William", "Xenia", "Yannick", "Yasmin", "Yusuf", "Zara", "Zoe"]
    ),
    towns=tuple(
        ["Aberdeen", "Amsterdam", "Antwerp", "Athens", "Barcelona", "Basel", "Belgrade", "Bergen", "Berlin", "Bilbao", "Bordeaux", "Boston", "Bristol", "Brussels", "Budapest", "Cairo", "Calgary", "Cardiff", "Chicago", "Cologne", "Dallas", "Denver", "Dublin", "Dresden", "Edinburgh", "Geneva", "Genoa", "Ghent", "Glasgow", "Graz", "Hamburg", "Hanover", "Helsinki", "Istanbul", "Jakarta", "Kyoto", "Leeds", "Leipzig", "Lima", "Lisbon", "London", "Lyon", "Madrid", "Malmo", "Manila", "Milan", "Montreal", "Munich", "Nairobi", "Nantes", "Naples", "Oslo", "Oxford", "Paris", "Porto", "Prague", "Quebec", "Riga", "Rome", "Rotterdam", "Salzburg", "Seattle", "Seoul", "Seville", "Stockholm", "Sydney", "Tallinn", "Toronto", "Turin", "Utrecht", "Valencia", "Vienna", "Warsaw", "York", "Zagreb", "Zurich"]
    ),
    venues=tuple(
        ["Alfredo", "Azzurro", "Bellini", "Bluebird", "Bonsai", "Casablanca", "Corner", "Dragonfly", "Elmwood", "Emerald", "Firefly", "Fountain", "Gardenia", "Harvest", "Hilltop", "Juniper", "Kingfisher", "Lakeview", "Lantern", "Lighthouse", "Magnolia", "Marigold", "Meridian", "Moonlight", "Nightingale", "Olympia", "Orchard", "Paprika", "Pelican", "Pepper", "Pineapple", "Riverside", "Rosemary", "Saffron", "Seagull", "Silverline", "Sparrow", "Sunset", "Swan", "Tivoli", "Trattoria", "Verdi", "Walnut", "Willow", "Zenith"]
    ),
)

TEST = Cast(
    people=tuple(
        ["Adrian", "Alma", "Amelia", "Anders", "Barbara", "Bernard", "Callum", "Celeste", "Darius", "Dorothy", "Eduardo", "Elsa", "Emre", "Fatima", "Frederik", "Giulia", "Greta", "Hector", "Hilda", "Imran", "Irene", "Joel", "Judith", "Kenji", "Kerstin", "Leila", "Leonard", "Lucia", "Marcus", "Miriam", "Mustafa", "Nils", "Noemi", "Orla", "Otto", "Pilar", "Quentin", "Rafael", "Renata", "Rupert", "Salma", "Sergio", "Silvia", "Theo", "Tilda", "Umberto", "Vanessa", "Vincent", "Wilma", "Yolanda"]
    ),
    towns=tuple(
        ["Aarhus", "Bologna", "Bremen", "Cordoba", "Cork", "Delft", "Eindhoven", "Granada", "Innsbruck", "Krakow", "Ljubljana", "Marseille", "Nottingham", "Odessa", "Palermo", "Reykjavik", "Sheffield", "Tampere", "Uppsala", "Verona"]
    ),
    venues=tuple(
        ["Acorn", "Bambino", "Clementine", "Driftwood", "Eclipse", "Foxglove", "Hazelnut", "Ivory", "Jasper", "Lavender", "Mirabelle", "Oakridge", "Peppercorn", "Ruby", "Starling", "Tamarind", "Vesuvio", "Waterfront"]
    ),
)

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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRAIN = Cast(
    people=_words(
        """
        Aaron Abel Ada Adam Adele Agnes Ahmed Aisha Alan Alba Albert Aldo Alec Alex Alexandra Alfred Ali
        Alicia Alina Allan Alvaro Alvin Amanda Amara Amina Amir Amy Ana Anatole Andre Andrea Andrew Angela
        Angus Anita Anna Annette Anthony Antoine Anton Antonia Ariel Arjun Arlene Armand Arnold Arthur
        Arturo Asha Astrid Audrey Aurora Ava Axel Ayla Aziz Beatrice Becky Bella Ben Benita Benjamin
        Bernadette Bert Bertha Bettina Bianca Birgit Bjorn Blake Bob Boris Brenda Brendan Brian Bridget
        Brigitte Britta Bruno Bryan Byron Calvin Camila Candice Carina Carla Carlos Carmen Carol Caroline
        Casper Cathy Cecilia Cedric Celia Cesar Chandra Charles Charlotte Chloe Chris Christa Christine
        Claire Clara Clarence Claudia Clement Clive Colin Connor Conrad Constance Cora Cordelia Cornelia
        Craig Curtis Cynthia Cyrus Dagmar Damian Dana Daniel Danny Daphne Daria Darren David Debbie
        Deborah Delia Dennis Derek Desmond Diana Diego Dieter Dina Dmitri Dolores Dominic Donald Donna
        Doreen Doris Douglas Duncan Dylan Earl Eddie Edgar Edith Edmund Edna Edward Edwin Eileen Elaine
        Eleanor Elena Eli Elias Elisa Elizabeth Ella Ellen Elliot Elmer Elvira Emanuel Emil Emily Emma
        Enzo Eric Erica Erik Erin Ernest Estella Esther Ethan Eugene Eva Evan Eve Evelyn Fabian Fanny
        Farah Farid Faye Felicia Felix Fernando Filip Fiona Flora Florence Florian Frances Francis Frank
        Franka Fred Freya Frieda Fritz Gabriel Gareth Gary Gavin Gemma Geoffrey George Gerald Gerda
        Gilbert Gina Gino Gisela Glenda Gloria Godfrey Gordon Grace Graham Greg Guido Gunnar Gustav Gwen
        Hakim Hannah Hans Harold Harriet Harry Harvey Hassan Heather Heidi Heinz Helen Helga Helmut Henrik
        Henry Herbert Herman Holger Horst Howard Hubert Hugh Hugo Humphrey Ian Ibrahim Ida Igor Ilona Ilse
        Imogen Ines Inge Ingrid Irma Irving Isaac Isabel Isabella Isla Ismail Iva Ivan Jackie Jacob Jaime
        Jake Jamal James Jan Jana Janet Jasmine Jason Javier Jean Jeff Jelena Jenny Jeremy Jerome Jesse
        Jessica Jill Jim Joachim Joan Joanna Joe Johan John Jonas Jonathan Jorge Jose Josef Joyce Juan
        Juanita Julia Julian Juliet Jurgen Justin Kai Karen Karim Karin Karl Karla Kate Kathleen Kathy
        Katja Katrin Kay Keith Kelly Ken Kenneth Kerry Kevin Khalid Kim Kiran Kirsten Kitty Klara Klaus
        Knut Kofi Konrad Kristin Kurt Kyle Laila Lana Larry Lars Laura Laurence Lea Leah Lee Lena Leo Leon
        Leonie Leroy Leslie Lewis Liam Lila Lilian Lina Linda Linus Lionel Lisa Lloyd Lois Lola Lorenzo
        Loretta Lorna Lothar Louis Louise Luca Lucas Ludwig Luigi Luis Lukas Luke Luna Lutz Lydia Lynn
        Mabel Maggie Magnus Mahmoud Maja Malik Manfred Manuel Marc Marcel Marco Margaret Margot Maria
        Marian Marianne Marina Mario Marion Marisa Marlene Marta Martha Martin Mary Mathis Matilda Mats
        Matthew Maureen Maurice Maxine Maya Megan Melanie Melissa Melvin Mercedes Meredith Merle Mia
        Michael Michelle Miguel Mikael Mike Milena Miles Mina Mira Mitchell Mohamed Moira Molly Mona
        Monica Morris Moses Murray Myra Myrtle Nadia Nadine Nancy Naomi Natalia Natasha Nathan Neil Nell
        Nelson Nick Nicolas Nicole Nigel Nikhil Nikita Nikola Nina Noah Noel Nora Norbert Norma Norman
        Odette Olaf Oleg Olga Oliver Olivia Omar Orson Oscar Oswald Owen Pablo Pamela Pascal Patricia
        Patrick Paul Paula Pauline Pedro Peggy Penelope Percy Perry Peter Petra Philip Phoebe Phyllis
        Pierre Piotr Polly Priya Rachel Raj Ralph Ramon Ramona Randall Rania Raoul Rasmus Raymond Rebecca
        Regina Reinhard Rene Rhoda Ricardo Richard Rita Robert Roderick Roger Roland Romeo Ron Ronald Rosa
        Rosalind Roswitha Rowan Roy Rudolf Rufus Russell Ruth Ryan Sabine Sabrina Sally Sam Samantha Samir
        Samuel Sandra Sarah Sasha Saul Scott Sean Sebastian Selma Sergei Seth Shane Sharon Shaun Sheila
        Shirley Sibylle Sidney Sigrid Simon Simone Sofia Solomon Sonja Stacy Stanley Stefan Stella
        Stephanie Steven Stuart Susan Suzanne Sven Svenja Sybil Sylvester Tamara Tania Tanja Tara Tarek
        Tariq Ted Terence Teresa Terry Thea Thelma Theodora Theresa Thomas Thorsten Tim Tina Tobias Todd
        Tom Tony Tracy Trevor Trudy Tyler Ulrich Ulrike Uma Una Ursula Uwe Valentin Valeria Valerie Vaughn
        Vera Veronica Vicky Victor Vikram Viktoria Viola Virgil Vivian Vladimir Wallace Walter Wanda
        Warren Wayne Wendy Werner Wesley Wilbur Wilfred Willem William Winifred Winston Wolfgang Xavier
        Xenia Yann Yannick Yara Yasmin Yuri Yusuf Yvette Yvonne Zachary Zara Zelda Zoe Zoltan
        """
    ),
    towns=_words(
        """
        Aberdeen Amsterdam Antwerp Athens Barcelona Basel Belgrade Bergen Berlin Bilbao Bordeaux Boston
        Bristol Brussels Budapest Cairo Calgary Cardiff Chicago Cologne Dallas Denver Dublin Dresden
        Edinburgh Geneva Genoa Ghent Glasgow Graz Hamburg Hanover Helsinki Istanbul Jakarta Kyoto Leeds
        Leipzig Lima Lisbon London Lyon Madrid Malmo Manila Milan Montreal Munich Nairobi Nantes Naples
        Oslo Oxford Paris Porto Prague Quebec Riga Rome Rotterdam Salzburg Seattle Seoul Seville Stockholm
        Sydney Tallinn Toronto Turin Utrecht Valencia Vienna Warsaw York Zagreb Zurich
        """
    ),
    venues=_words(
        """
        Alfredo Azzurro Bellini Bluebird Bonsai Casablanca Corner Dragonfly Elmwood Emerald Firefly
        Fountain Gardenia Harvest Hilltop Juniper Kingfisher Lakeview Lantern Lighthouse Magnolia Marigold
        Meridian Moonlight Nightingale Olympia Orchard Paprika Pelican Pepper Pineapple Riverside Rosemary
        Saffron Seagull Silverline Sparrow Sunset Swan Tivoli Trattoria Verdi Walnut Willow Zenith
        """
    ),
)

TEST = Cast(
    people=_words(
        """
        Adrian Alma Amelia Anders Barbara Bernard Callum Celeste Darius Dorothy Eduardo Elsa Emre Fatima
        Frederik Giulia Greta Hector Hilda Imran Irene Joel Judith Kenji Kerstin Leila Leonard Lucia
        Marcus Miriam Mustafa Nils Noemi Orla Otto Pilar Quentin Rafael Renata Rupert Salma Sergio Silvia
        Theo Tilda Umberto Vanessa Vincent Wilma Yolanda
        """
    ),
    towns=_words(
        """
        Aarhus Bologna Bremen Cordoba Cork Delft Eindhoven Granada Innsbruck Krakow Ljubljana Marseille
        Nottingham Odessa Palermo Reykjavik Sheffield Tampere Uppsala Verona
        """
    ),
    venues=_words(
        """
        Acorn Bambino Clementine Driftwood Eclipse Foxglove Hazelnut Ivory Jasper Lavender Mirabelle
        Oakridge Peppercorn Ruby Starling Tamarind Vesuvio Waterfront
        """
    ),
)

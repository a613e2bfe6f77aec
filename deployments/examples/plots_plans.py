"""Plots about plans: meetings moved, trips, visits, parties, cancellations (format: see scenes.py)."""

from __future__ import annotations

PLANS = """
A: is the {event} still on {day}? | when is our {event} again, {day}? | the {event} is on {day}, right?
B: yes, {day} at {time} | {day} at {time}, as always
A: I can't make {day} | {day} is bad for me, {excuse}
?B: oh no | hmm, ok
B: what about {day2}? | we could do {day2} instead
A: {day2} is fine, but not before {time2} | {day2} works, let's say {time2}
B: ok, {time2} it is | good, I'll tell the others
= {A} and {B} move the {event} to {day2} at {time2}.

A: I'm moving the {event} | the {event} has to move, sorry
?B: again? | why is that?
A: {excuse} on {day}
B: I'm free on {day2} or {day3} | {day2} or {day3} suits me
A: {day2} is full for me | not {day2}, please
B: then {day3} | {day3} then?
A: {day3} at {time} | yes, {day3}, {time}
= {A} moves the {event} to {day3} at {time}.

A: shall we go to {outing} on {day}? | how about {outing} this {day}?
B: I'd love to | sounds fun
?A: great, I was hoping so
B: wait, {excuse} on {day} | ah no, {excuse} that day
A: {day2} then? | would {day2} be better?
B: {day2} is perfect | yes, {day2}
A: let's meet at {time} in front of {venue} | {time} at {venue}?
B: see you there | deal
= {A} and {B} will meet at {venue} on {day2} at {time} to go to {outing}.

A: do you want to come to {outing} with me? | I have a spare ticket for {outing}
B: when is it? | which day?
A: {day} at {time} | on {day}, {time}
B: I can't, {excuse} | sorry, {excuse} that evening
?A: what a pity | too bad
A: I'll ask {N} then | then I'll take {N}
= {B} can't join {A} for {outing} because {B} {excuse'}. {A} will ask {N}.

A: where should we eat tonight? | I'm hungry, where do we go?
B: {venue}? | what about {venue}?
A: I was at {venue} yesterday | {venue} is too loud for me
B: ok, {venue2} then | then {venue2}, they have good {dish}
A: oh yes, {venue2} | {venue2} is lovely
B: I'll book a table for {time} | {time}?
A: make it {time2}, I'm late | {time2} is better for me
= {A} and {B} will have dinner at {venue2} at {time2}.

A: we need a place for the {event} | where do we hold the {event}?
B: {venue} is nice | I like {venue}
C: {venue} is closed on {day} | they don't open on {day}
A: any other idea? | hmm, where else?
C: {venue2} has a big room | {venue2} would have us
B: fine with me | agreed
A: I'll call {venue2} today | I'll book {venue2}
= {A} will book {venue2} for the {event} because {venue} is closed on {day}.

A: I'm planning a trip to {town} | I want to see {town} this spring
B: nice, how do you get there? | how are you travelling?
A: by {ride}, I think | probably the {ride}
B: the {ride} takes ages, take the {ride2} | I'd go by {ride2}, it is cheaper
A: you're right, {ride2} it is | good point, I'll take the {ride2}
?B: how long will you stay?
A: I leave on {day} and stay {number} days | {number} days, from {day}
= {A} will travel to {town} by {ride2} on {day} for {number} days.

A: shall we go to {town} in the holidays? | what do you say to {town}?
B: I've been to {town} twice | {town} is too expensive
A: and {town2}? | ok, {town2} then?
B: {town2} is too far | I don't know, {weather} in {town2}
A: your turn then | what do you suggest?
B: {town3} | I'd like to see {town3}
A: {town3} it is, I'll look for a {ride} | good, {town3}, I'll book the {ride}
= {A} and {B} will go to {town3}. {A} will book the {ride}.

A: are you still coming to {town} on {day}? | so you arrive in {town} on {day}?
B: my {ride} was cancelled | they cancelled the {ride}
A: because of the {weather}? | is it the {weather}?
B: yes, the {weather} | exactly, {weather} everywhere
A: what now? | so what will you do?
B: I'll take the {ride2} on {day2} | there is a {ride2} on {day2}
A: I'll pick you up | I'll wait at the station
= {B}'s {ride} to {town} was cancelled because of {weather}. {B} will take the {ride2} on {day2}.

A: I'm at the station in {town}, where are you? | I'm here in {town} already
B: still on the {ride} | stuck on the {ride}, sorry
A: how late are you? | when will you arrive?
B: {number} minutes | about {number} minutes late
?A: ok no stress
B: now they say {number2} minutes | no, make that {number2} minutes
A: I'll wait at {venue} | come to {venue} then
= {B} is {number2} minutes late on the {ride}. {A} will wait at {venue}.

A: can I stay at your place in {town}? | I need a bed in {town}, can you help?
B: when? | for which day?
A: {day} | from {day}
B: {excuse}, so not at my place | I can't, {excuse}
B: but {N} has a spare room | ask {N}, there is a free room
A: oh great, do you have the number? | would {N} mind?
B: I'll ask {N} for you | I'll text {N} now
= {A} needs a bed in {town} on {day}. {B} will ask {N}.

A: is the party at your place on {day}? | are you having the party on {day}?
B: no, I moved it to {day2} | it's on {day2} now
A: what can I bring? | shall I make {dish}?
B: {N} is bringing {dish} | we have {dish} already
A: {dish2} then? | I could make {dish2}
B: yes please | {dish2} would be great
= {B}'s party is on {day2}. {A} will bring {dish2}.

A: {N}'s party is on {day} | are you going to {N}'s party?
B: I don't have a gift yet | what do we give {N}?
A: {gift}? | I thought of {gift}
B: {N} has that already | too boring
A: then {gift2}? | maybe {gift2}
B: yes, {gift2}! | {gift2} is a great idea
A: I'll buy it and you pay half | I'll get it tomorrow
= {A} will buy {gift2} for {N}'s party.

A: it's my {relative}'s birthday on {day} | my {relative} turns sixty on {day}
B: what are you giving? | any ideas for a gift?
A: {gift} | I saw {gift} for {price}
B: isn't that a bit dull? | hmm, what about {gift2}?
A: you're right, rather {gift2} | ok {gift2} it is
?B: where do you get it?
B: they have it for {price2} | I saw one for {price2}
= {A} will buy {gift2} for {price2} for {A}'s {relative}.

A: the {event} is off | bad news about the {event}
B: why? | what happened?
A: {N} {excuse'} | {N} is ill
?B: poor {N}
B: and when is the new date? | do we have a new date?
A: not yet, {N} will write to us | {N} will tell us on {day}
= The {event} is cancelled. {N} will tell {A} and {B} the new date.

A: lunch tomorrow? | shall we have lunch?
B: yes, {time} at {venue}? | sure, {venue} at {time}
C: can I come too? | I'm hungry too!
A: of course {C} | sure, join us
C: but {time} is too early for me | could we do {time2}?
B: {time2} is ok | fine, {time2}
= {A}, {B} and {C} will have lunch at {venue} at {time2}.

A: who is driving to {town} on {day}? | we need a driver for {town}
B: I can drive | I could take my car
C: your car is too small {B} | we are {number} people, {B}
A: true | hmm, right
C: I'll drive, I have the van | then I'll drive
B: thanks {C}, what time? | when do we leave?
C: {time} | at {time} sharp
= {C} will drive {A} and {B} to {town} at {time}.

A: I signed up for {hobby} | I'm starting {hobby} on {day}
B: oh where? | cool, is it hard?
A: at {venue}, it costs {price} | {venue}, {price} a month
B: I want to try that too | can anybody join?
A: sure, the next class is on {day2} | come on {day2}
B: I'll come on {day2} | ok, {day2}
= {B} will join {A}'s {hobby} class at {venue} on {day2}.

A: come to {hobby} with me on {day} | there is a free {hobby} class on {day}
B: {hobby}? no way | I'm terrible at {hobby}
A: please, just once | it's for beginners
B: only if you come to {hobby2} | hmm, I'd rather do {hobby2}
A: ok, {hobby2} on {day2} | fine, let's try {hobby2} on {day2}
B: deal | ok!
= {A} and {B} will try {hobby2} on {day2}.

A: I'm in {town} next week | guess who comes to {town}
B: really? let's meet | oh wonderful, when?
A: {day}? | I arrive on {day}
B: {excuse} on {day} | not {day}, {excuse}
A: then {day2}, at {venue}? | I'm still there on {day2}, {venue}?
B: {day2}, {venue}, {time} | yes, {time}
= {A} and {B} will meet in {town} on {day2} at {time} at {venue}.
"""

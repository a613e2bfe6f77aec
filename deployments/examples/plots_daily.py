"""Plots about daily life: favours, lost things, work, cooking, health, advice (format: see scenes.py)."""

from __future__ import annotations

DAILY = """
A: have you seen my {object}? | I can't find my {object}
B: the {colour} one? | which {object}?
A: yes, I looked {spot} | yes, it isn't {spot}
B: did you look {spot2}? | maybe {spot2}?
A: no, nothing there | not there
C: I saw it {spot3} | it's {spot3}, I saw it
A: found it, thank you {C} | yes! thanks {C}
= {C} saw {A}'s {object} {spot3}.

A: I lost my {object} | my {object} is gone
B: when did you last have it? | where were you?
A: at {venue}, I think | in {town} or at {venue}
B: I'll call them | ask there
?A: good idea
A: I called, they don't have it | they haven't found anything
B: wait, it's {spot} | oh, I see it {spot}
= {B} found {A}'s {object} {spot}.

A: whose {colour} {object} is this? | somebody left a {colour} {object} here
B: not mine | mine is {colour2}
?C: where did you find it?
A: it was {spot} | I found it {spot}
C: I think it belongs to {N} | that looks like {N}'s
A: I'll give it to {N} on {day} | ok, I see {N} on {day}
= {A} found {N}'s {object} {spot} and will return it on {day}.

A: can you {task} for me? | could you {task} on {day}?
B: {excuse}, sorry | I'd like to, but {excuse}
?A: oh ok
C: I can do it | I have time
A: really? could you come at {time}? | oh thanks {C}, {time}?
C: sure, {time} | {time} is fine
= {C} will {task} for {A} at {time} because {B} {excuse'}.

A: I need a favour | can I ask you something?
B: of course | depends ;)
A: could you {task}? {excuse} | {excuse}, so could you {task}?
B: when? | by when?
A: {day} | on {day} if possible
B: {day} is hard, {day2}? | I could do it on {day2}
A: {day2} is fine too | yes, {day2} is ok
= {B} will {task} for {A} on {day2}.

A: could you {task} and {task2}? | please {task} and {task2} today
B: both? I don't have the time | I can only do one of them
A: which one? | hm, which do you prefer?
B: I'll {task2} | I can {task2}
A: ok, then I'll {task} myself | fine, I'll {task}
= {B} will {task2} and {A} will {task}.

A: did you {task}? | you wanted to {task}
B: no, I forgot | sorry, I forgot about it
?A: again?!
A: I need it done by {day} | please do it before {day}
B: I'll do it at {time} | today at {time}, promise
= {B} forgot to {task} and will do it at {time}.

A: is the {doc} ready? | how is the {doc} going?
B: not quite | almost
A: the boss wants it on {day} | it is due on {day}
B: {day} is too early, {excuse} | I can't, {excuse}
A: I'll ask for more time | let me talk to the boss
?B: thank you
A: ok, you have until {day2} | the boss says {day2} at the latest
B: {day2} works | that's enough time
= {B} has until {day2} to finish the {doc}.

A: who writes the {doc}? | somebody has to do the {doc}
B: {C} wanted to | I think {C} does
C: I have the {doc2} already | no, I'm doing the {doc2}
B: then I'll take it | ok, I'll do it
A: by {day} please | can you finish by {day}?
B: by {day2} | {day2}, not earlier
= {B} will write the {doc} by {day2}. {C} is doing the {doc2}.

A: there is a mistake in the {doc} | I read your {doc}, something is wrong
B: where? | oh no, which page?
A: page {number} | on page {number}, the price
B: it should be {price} | you're right, that should be {price}
A: I have {price2} here | my list says {price2}
?B: let me look
B: {price2} is correct, I'll fix it | yes, {price2}, I'll change it
= {A} found a mistake in the {doc}. {B} will change the price to {price2}.

A: I can't open the {doc} | the {doc} doesn't open here
B: try again | restart your computer
A: I did, no luck | still the same
B: shall I print it? | I could send it by mail
A: better bring it at {time} | bring it to {venue} at {time}
B: ok | no problem
= {A} can't open the {doc}. {B} will bring it at {time}.

A: I'm making {dish}, do we have {food}? | I need {food} for the {dish}
B: no, but we have {food2} | there is {food2} only
A: does {food2} work? | can I use {food2}?
B: yes, {N} always does that | it works, trust me
A: ok, {food2} then | I'll try {food2}
= {A} will use {food2} instead of {food} for the {dish}.

A: I'm at the shop, what do we need? | shopping now, any wishes?
B: {food} and {food2} | we need {food} and {food2}
A: there is no {food} | {food} is sold out
B: take {food3} instead | then get {food3}
A: {food3} and {food2}, got it | ok
= {B} asks {A} to buy {food3} and {food2}.

A: how did you make that {dish}? | I loved your {dish}, how do you do it?
B: it's from my {relative} | my {relative}'s recipe
A: is there {food} in it? | I tasted {food}
B: no, {food2} | not {food}, it's {food2}
?A: never would have guessed
A: I'll make it on {day} | I'll try it for {N} on {day}
= {A} will make {B}'s {dish} with {food2} on {day}.

A: what shall I cook for {N}? | {N} is coming for dinner, any ideas?
B: {dish}? | make {dish}
A: {N} doesn't eat {food} | {N} is allergic to {food}
B: oh, then {dish2} | ok, {dish2}, no {food} in there
A: great, {dish2} | {dish2}, good
= {A} will cook {dish2} for {N}, who doesn't eat {food}.

A: the {dish} is ruined | I burnt the {dish}
B: oh no, and {N} comes at {time} | what now?
A: should I start again? | is there time for a new one?
B: no, let's order from {venue} | just order from {venue}
?A: I feel so stupid
A: ok, I'll order {dish2} | {dish2} for everybody?
B: yes, {dish2} | good choice
= {A} burnt the {dish} and will order {dish2} from {venue}.

A: I feel awful | I don't feel well
B: what is it? | what's wrong?
A: I have {pain} | it's {pain}
B: you should {cure} | {cure}, that helps me
A: I tried, it didn't help | I did that already
B: then {cure2} | maybe {cure2}
A: ok, I'll do that | I'll try
= {A} has {pain}. {B} tells {A} to {cure2}.

A: how is {N}? | any news from {N}?
B: in hospital in {town} | not so good
A: oh dear, what happened? | what is it?
B: {pain}, but it's better today | {pain} since {day}
A: can we visit? | when can I visit?
B: from {time} on {day2} | {day2} at {time}
= {N} has {pain}. {A} can visit on {day2} at {time}.

A: can you recommend something? I'm bored | what should I watch or read?
B: there is {media} | try {media}
A: I know that one | not my thing
B: and {media2}? | hm, {media2} maybe
A: what is it about? | is it long?
B: it's set in {town} | only {number} parts, set in {town}
A: ok, I'll try it | sounds good
= {B} recommends {media2} set in {town} to {A}.

A: do you know a good restaurant in {town}? | where can I eat in {town}?
B: {venue} | I like {venue}
C: no, {venue} is bad now | {venue} has closed
B: really? | oh no
C: go to {venue2}, try the {dish} | {venue2} has great {dish}
A: thanks {C} | {venue2}, noted
= {C} recommends the {dish} at {venue2} in {town} to {A}.

A: I'm selling my {thing} | do you still need a {thing}?
B: how much? | what do you want for it?
A: {price} | I thought of {price}
B: too much, {price2}? | I have {price2}
A: {price3} and it's yours | let's say {price3}
B: deal, I'll come on {day} | ok, I'll fetch it on {day}
= {B} will buy {A}'s {thing} for {price3} on {day}.

A: my {thing} is broken | the {thing} stopped working
B: call {N} | {N} repairs those
A: {N} wants {price} | that costs {price}
B: wow, then buy a new one | that's a lot
C: I have an old {thing}, take mine | you can have mine
A: really? thank you {C} | oh {C}, you're the best
= {A}'s {thing} is broken. {C} will give {A} an old one.

A: can I borrow your {thing}? | I need a {thing} for {day}
B: {N} has it right now | I lent it to {N}
A: when does it come back? | until when?
B: {day2} | {N} brings it back on {day2}
A: could I have it after that? | then I'd take it from there
B: sure, come on {day3} | ok, {day3}
= {A} will borrow {B}'s {thing} on {day3}.

A: I want {gift} for my flat | I'm thinking of buying {gift}
B: how much is it? | is it expensive?
A: {price} | they ask {price}
B: {N} sells one for {price2} | at {venue} it's {price2}
A: oh, that's better | that's a good price
?B: you're welcome
A: I've changed my mind, I'll get {gift2} | hmm, in fact I prefer {gift2}
= {A} will buy {gift2} instead of {gift}.

A: we're getting {pet} | the kids want {pet}
B: is that a good idea? | {excuse}, can I see it?
A: {N} is allergic, so no | in fact no, {N} said no
B: so what will you get? | and now?
A: {pet2} | we'll get {pet2} on {day}
B: how cute | what will you call it?
= {A} will get {pet2} instead of {pet}.

A: have you heard about {N}? | guess what {N} did
B: {N} {news}? | no, did {N} move to {town}?
A: no, {N} {news2} | {N} {news2}!
B: wow, good for {N} | I'm so happy for {N}
A: there is a party on {day} | we celebrate on {day} at {venue}
= {A} tells {B} that {N} {news2}. There is a party on {day}.

A: I have news | you won't believe it
B: tell me | what?
A: I {news} | I finally did it, I {news}
B: congratulations! | wow, well done
A: I'm celebrating at {venue}, are you in? | drinks at {venue} on {day}?
B: {excuse} on {day}, can I come on {day2}? | {day2} would be better
A: ok, {day2} | sure, then {day2}
= {A} {news}. {A} and {B} will celebrate at {venue} on {day2}.

A: I'm moving to {town} | I got a flat in {town}
B: when? | oh, so soon?
A: on {day} | the van comes on {day}
B: {excuse}, but I can help before | do you need help?
A: could you {task}? | yes, please {task}
B: sure, I'll come at {time} | of course, {time}?
= {A} is moving to {town}. {B} will {task} at {time}.

A: you were right about {N} | I talked to {N}
B: and? | what did {N} say?
A: {N} won't come to {town} | {N} wants to leave {town}
B: why? | because of the {weather}?
A: {N} {excuse'} | no, {N} {excuse'}
= {A} tells {B} that {N} won't come to {town} because {N} {excuse'}.

A: let's paint the room {colour} | I want {colour} walls
B: {colour}? I hate {colour} | not {colour}, please
A: you choose then | and what do you want?
B: {colour2} | I'd say {colour2}
A: {colour2} is too dark | hmm, {colour2}...
B: ok, {colour3} | then {colour3}
A: {colour3} is good | yes, {colour3}!
= {A} and {B} will paint the room {colour3}.
"""

"""Serve steered models over HTTP, as OpenAI's clients speak it, and a page to try them on.

catalogue   the calibrations that are served, and the model they share
scheduler   the thread that the model runs in: requests join and leave its batch at any step
reply_text  from a reply's tokens to the text that is sent, piece by piece
protocol    what requests say, checked
answers     what is answered
listening   between the model's thread and the requests that wait for it
scoring     log-probabilities of whole texts
desk        takes requests for replies, and answers them
faults      what is answered when something goes wrong
app         the routes
server      a socket, and the app behind it
"""

"""An app with a JavaScript front: the Dash object is not what is served, its Flask server is."""

from dash import Dash, Input, Output, callback, dcc, html

app = Dash(__name__, title="hardserve dash")
app.layout = html.Div([dcc.Input(id="name", value="World", debounce=False), html.P(id="greeting")])


@callback(Output("greeting", "children"), Input("name", "value"))
def greet(name):
    return f"Hello, {name}!"

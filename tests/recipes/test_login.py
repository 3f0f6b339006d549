"""Flask-Login: `identify` says who asks; `login_required` answers as the rest of the application does."""

from __future__ import annotations

from flask_login import LoginManager, UserMixin, current_user, login_required, login_user, logout_user

from flask_llmstream import LLMStream
from tests.conversation import ask, instant, new_app, problem, text


class User(UserMixin):
    def __init__(self, user_id):
        self.id = user_id


def create_app(llm, login_view=None):
    app = new_app()
    login_manager = LoginManager(app)
    login_manager.user_loader(User)
    login_manager.login_view = login_view
    app.add_url_rule("/login/<name>", "login", lambda name: str(login_user(User(name))))
    app.add_url_rule("/logout", "logout", lambda: str(logout_user()))
    llm.init_app(app)
    return app


def test_identify_with_flask_login():
    llm = LLMStream(model=instant(), identify=lambda: current_user.get_id())

    @llm.stream("/api/whoami")
    def whoami(run):
        yield f"You are {run.user}"

    app = create_app(llm)
    ada, eve = app.test_client(), app.test_client()
    assert problem(ask(ada, "/api/whoami"))["status"] == 401
    ada.get("/login/ada")
    answer = ask(ada, "/api/whoami")
    assert text(answer) == "You are ada"
    assert ada.get(answer.headers["Location"]).status_code == 200
    eve.get("/login/eve")
    assert eve.get(answer.headers["Location"]).status_code == 404
    ada.get("/logout")
    assert ada.get(answer.headers["Location"]).status_code == 401


def test_login_required_on_one_feature():
    llm = LLMStream(model=instant())

    @llm.stream("/api/members/stream", decorators=[login_required])
    def members(run):
        yield "For members"

    app = create_app(llm)
    client = app.test_client()
    assert problem(ask(client, "/api/members/stream"))["status"] == 401
    assert text(ask(client)) == "Hello, you"  # the others are open
    client.get("/login/ada")
    assert text(ask(client, "/api/members/stream")) == "For members"


def test_login_required_everywhere_with_a_login_page():
    llm = LLMStream(model=instant(), decorators=[login_required])
    app = create_app(llm, login_view="login_page")
    app.add_url_rule("/login", "login_page", lambda: "Please sign in")
    client = app.test_client()
    for refused in (ask(client), client.get("/api/runs/none"), client.delete("/api/runs/none")):
        assert refused.status_code == 302
        assert refused.headers["Location"].startswith("/login?next=")
    client.get("/login/ada")
    assert text(ask(client)) == "Hello, you"


def test_around_the_function_it_fails():
    llm = LLMStream(model=instant(), identify=lambda: current_user.get_id())

    @llm.stream("/api/members/stream")
    @login_required
    def members(run):
        yield "never seen"

    app = create_app(llm)
    client = app.test_client()
    client.get("/login/ada")
    assert problem(ask(client, "/api/members/stream"))["type"].endswith("feature-failed")

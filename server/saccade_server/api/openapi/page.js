// Shows the API's document, and sends the key that the user typed with every call to this server.
"use strict";

// Session storage: the key is this tab's own and gone with it.
const SLOT = "api-key";
const form = document.getElementById("access");
const field = document.getElementById("key");
const state = document.getElementById("state");

function say(text) {
  state.textContent = text;
}

function withKey(request) {
  const key = sessionStorage.getItem(SLOT);
  const here = new URL(request.url, document.baseURI).origin === location.origin;
  if (key && here && !request.headers.Authorization) {
    request.headers.Authorization = `Bearer ${key}`;
  }
  return request;
}

async function show() {
  let answer;
  try {
    answer = await fetch("openapi.json", withKey({ url: "openapi.json", headers: {} }));
  } catch {
    return say("The server does not answer.");
  }
  if (answer.status === 401) {
    return say(sessionStorage.getItem(SLOT) ? "This key is not known." : "A key is needed.");
  }
  if (!answer.ok) return say(`The document could not be had: ${answer.status}.`);
  say(sessionStorage.getItem(SLOT) ? "Calls carry your key." : "");
  SwaggerUIBundle({
    dom_id: "#api",
    spec: await answer.json(),
    requestInterceptor: withKey,
    deepLinking: true,
    docExpansion: "list",
    tryItOutEnabled: true,
    validatorUrl: null,
    persistAuthorization: false,
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(SLOT, field.value.trim());
  field.value = "";
  show();
});

document.getElementById("forget").addEventListener("click", () => {
  sessionStorage.removeItem(SLOT);
  location.reload();
});

show();

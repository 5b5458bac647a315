// Shows /openapi.json. Everything is set as text: nothing in the document can become markup.

const byId = (id) => document.getElementById(id);

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.append(...marked(text));
  made.append(...children);
  return made;
}

// `code` in descriptions.
function marked(text) {
  return text.split("`").map((part, place) => {
    if (place % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  });
}

function reference(path) {
  const name = path.split("/").pop();
  const link = element("a");
  link.textContent = name;
  link.href = `#model-${name}`;
  return link;
}

// A schema in a line: the name of a model, or its type.
function short(schema) {
  if (schema.$ref) return reference(schema.$ref);
  const found = schema.anyOf ?? (schema.items?.$ref ? [schema.items] : null);
  if (!found) {
    const code = element("code");
    code.textContent = schema.enum?.join(" | ") ?? schema.type ?? "any";
    return code;
  }
  const span = element("span");
  if (schema.type === "array") span.append("array of ");
  found.forEach((each, place) => span.append(place ? " or " : "", short(each)));
  return span;
}

function table(heads, rows) {
  const made = element("table");
  made.append(element("thead", "", element("tr", "", ...heads.map((head) => element("th", head)))));
  made.append(element("tbody", "", ...rows.map((cells) => element("tr", "", ...cells))));
  return made;
}

function cell(...children) {
  const made = element("td");
  made.append(...children);
  return made;
}

function bodies(content) {
  return Object.entries(content ?? {}).flatMap(([media, body]) => {
    const code = element("code");
    code.textContent = media;
    return [element("div", "", code, " ", short(body.schema))];
  });
}

function operation(method, path, described) {
  const section = element("section");
  section.id = described.operationId;
  const head = element("h3");
  const verb = element("span");
  verb.className = "method";
  verb.textContent = method.toUpperCase();
  head.append(verb, path);
  section.append(head, element("p", described.summary));
  if (described.description) section.append(element("p", described.description));
  if (!described.security) section.append(element("p", "Open to all."));
  if (described.parameters) {
    const rows = described.parameters.map((each) => [
      cell(element("code", each.name)),
      cell(each.in + (each.required ? ", required" : "")),
      cell(short(each.schema)),
      cell(...marked(each.description)),
    ]);
    section.append(element("h4", "Parameters"), table(["Name", "Where", "Type", "Meaning"], rows));
  }
  if (described.requestBody) {
    section.append(element("h4", "Body"), ...bodies(described.requestBody.content));
  }
  const rows = Object.entries(described.responses).map(([status, answer]) => [
    cell(status),
    cell(...marked(answer.description)),
    cell(...bodies(answer.content)),
  ]);
  section.append(element("h4", "Answers"), table(["Status", "Meaning", "Body"], rows));
  return section;
}

function model(name, schema) {
  const section = element("section");
  section.id = `model-${name}`;
  const text = element("pre");
  text.tabIndex = 0;
  text.textContent = JSON.stringify(schema, null, 2);
  section.append(element("h3", name), text);
  return section;
}

function show(description) {
  byId("about").replaceChildren(...marked(description.info.description));
  for (const [path, operations] of Object.entries(description.paths)) {
    for (const [method, described] of Object.entries(operations)) {
      const link = element("a");
      link.href = `#${described.operationId}`;
      const verb = element("span");
      verb.className = "method";
      verb.textContent = method.toUpperCase();
      link.append(verb, path);
      byId("index").append(element("li", "", link));
      byId("operations").append(operation(method, path, described));
    }
  }
  for (const [name, schema] of Object.entries(description.components.schemas)) {
    byId("schemas").append(model(name, schema));
  }
}

try {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  show(await answer.json());
} catch (error) {
  byId("about").textContent = `The description could not be loaded: ${error.message}`;
}

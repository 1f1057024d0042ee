// Runs both example workflows in the editor of a running ComfyUI and takes every picture of it that this repository shows:
//
//   workflows/*.jpg               thumbnails for the template browser
//   docs/pictures/templates.jpg   the template browser with these thumbnails
//   docs/pictures/teach.jpg       both workflows after they ran
//   docs/pictures/compose.jpg
//
// Once:  apt-get install chromium; npm install --prefix /tmp/shots playwright-core
// Then:  NODE_PATH=/tmp/shots/node_modules node scripts/screenshots.mjs http://127.0.0.1:8188
//
// at a ComfyUI that has no library "my first library" yet. One of that kind, for as long as it takes:
//
//   NODE_PATH=/tmp/shots/node_modules python - <<END
//   import subprocess
//   from tests.hosts import HostServer
//   with HostServer() as host:
//       subprocess.run(["node", "scripts/screenshots.mjs", f"http://127.0.0.1:{host.port}"], check=True)
//   END
//
// CHROMIUM names another browser than /usr/bin/chromium; a second argument, a folder other than this repository to write to.
import { createRequire } from 'node:module'
import { mkdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const { chromium } = createRequire(import.meta.url)('playwright-core')
const [url, out = join(dirname(fileURLToPath(import.meta.url)), '..')] = process.argv.slice(2)
if (!url) throw new Error('usage: node scripts/screenshots.mjs <address of a running ComfyUI> [folder]')

const MINUTES = 60_000
const BROWSER = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--no-first-run']
// What a thumbnail shows: the part of the canvas from the first of these nodes to the last.
const THUMBNAILS = {
  teach_two_concepts: ['Create Concept Library', 'Pictures of the second concept'],
  compose_two_concepts: ['Save Image']
}

const problems = []
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: BROWSER })
let page = await newPage()
for (const folder of ['workflows', 'docs/pictures']) mkdirSync(join(out, folder), { recursive: true })

for (const name of Object.keys(THUMBNAILS)) {
  problems.length = 0 // a new ComfyUI opens with a workflow of its own, whose models it does not have
  await openTemplates()
  await page.getByRole('dialog').getByText(name, { exact: true }).click()
  await page.waitForFunction((title) => window.app.graph.nodes.some((node) => node.title === title), THUMBNAILS[name][0])
  const seconds = await run()
  await shootGraph(`docs/pictures/${name.split('_')[0]}.jpg`, null)
  await shootGraph(`workflows/${name}.jpg`, THUMBNAILS[name])
  console.log(`${name}: ran in ${seconds} s; ${problems.length ? problems.join('\n  ') : 'nothing on the console'}`)
}
await page.close()
page = await newPage() // one that has kept no older thumbnails
await openTemplates()
await shoot('docs/pictures/templates.jpg')
await browser.close()

async function newPage() {
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } })
  page.setDefaultTimeout(2 * MINUTES)
  page.on('pageerror', (error) => problems.push(`page error: ${error.message}`))
  page.on('console', (message) => { if (message.type() === 'error') problems.push(`console: ${message.text()}`) })
  await page.goto(url)
  await page.waitForFunction(() => window.LiteGraph?.registered_node_types?.SeqLoRA_DemoModel && window.app?.graph)
  await page.addStyleTag({ content: '.litegraph-minimap, .p-toast { display: none !important }' })
  await page.waitForTimeout(3000) // the first visit opens the template browser by itself
  return page
}

async function openTemplates() {
  const dialog = page.getByRole('dialog')
  if (!(await dialog.count())) await page.getByRole('button', { name: 'Templates' }).first().click()
  await dialog.getByText('seqlora', { exact: true }).click()
  await dialog.getByText('compose_two_concepts', { exact: true }).waitFor()
  await page.waitForTimeout(2000)
}

async function run() {
  await page.evaluate(() => {
    window.ended = null
    for (const event of ['execution_success', 'execution_error', 'execution_interrupted']) {
      window.app.api.addEventListener(event, ({ detail }) => { window.ended ??= { event, ...detail } }, { once: true })
    }
  })
  const began = Date.now()
  await page.getByRole('button', { name: 'Run', exact: true }).first().click()
  await page.waitForFunction(() => window.ended, null, { timeout: 20 * MINUTES })
  const ended = await page.evaluate(() => window.ended)
  if (ended.event !== 'execution_success') throw new Error(`${ended.node_type}: ${ended.exception_message ?? ended.event}`)
  const seconds = Math.round((Date.now() - began) / 1000)
  await page.waitForTimeout(2000)
  await page.getByText('Job completed').first().waitFor({ state: 'hidden' }) // it lies over the canvas
  return seconds
}

async function shoot(file, clip) {
  await page.screenshot({ path: join(out, file), type: 'jpeg', quality: 85, clip })
}

// The part of the canvas that these nodes (or all) take up.
async function shootGraph(file, titles) {
  const clip = await page.evaluate((titles) => {
    const { graph, canvas } = window.app
    const boxes = graph.nodes.filter((node) => !titles || titles.includes(node.title)).map((node) => node.getBounding())
    const left = Math.min(...boxes.map((box) => box[0])) - 20
    const top = Math.min(...boxes.map((box) => box[1])) - 30
    const width = Math.max(...boxes.map((box) => box[0] + box[2])) + 20 - left
    const height = Math.max(...boxes.map((box) => box[1] + box[3])) + 20 - top
    const [x, y] = [70, 110] // below the bars of the editor
    const scale = Math.min(1, (window.innerWidth - x - 20) / width, (window.innerHeight - y - 20) / height)
    canvas.ds.scale = scale
    canvas.ds.offset = [x / scale - left, y / scale - top]
    canvas.show_info = false
    canvas.setDirty(true, true)
    return { x, y, width: width * scale, height: height * scale }
  }, titles)
  await page.waitForTimeout(3000)
  await shoot(file, clip)
}
